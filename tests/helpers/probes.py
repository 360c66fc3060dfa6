"""Callbacks that disturb or record a run."""

import json
import os
import signal
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_dreambooth.errors import TrainingError


class Stopper(Callback):
    """Sends this process SIGTERM as a micro-batch begins."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Called by Lightning."""
        if batch_idx == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


class Killer(Callback):
    """Kills this process as a micro-batch begins, after the log has reached the disk."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Called by Lightning."""
        if batch_idx == self.at:
            trainer.logger.experiment.flush()
            os.kill(os.getpid(), signal.SIGKILL)


class Spoiler(Callback):
    """Breaks something in the third step, and writes the file `spoiled`."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Called by Lightning."""
        if batch_idx != 2:
            return
        Path("spoiled").touch()
        if self.how == "every image is broken":
            for image in Path("girl").glob("*.png"):
                image.write_bytes(b"x")
        elif self.how == "every image is gone":
            for image in Path("girl").glob("*.png"):
                image.unlink()
        elif self.how == "a worker is killed":
            os.kill(active_children()[0].pid, signal.SIGKILL)
        elif self.how == "a worker is stopped":
            os.kill(active_children()[0].pid, signal.SIGSTOP)
            raise TrainingError("the disk is full")
        else:
            raise TrainingError("the disk is full")


class Recorder(Callback):
    """Writes the sample indices and the final weights of each process."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.numbers: list[list[int]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Called by Lightning."""
        self.numbers.append(batch.indices)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning."""
        self.folder.mkdir(exist_ok=True)
        weights = {name: weight.detach() for name, weight in pl_module.named_parameters() if weight.requires_grad}
        rank = str(trainer.global_rank)
        save_file({name: weight.contiguous() for name, weight in weights.items()}, self.folder / rank)
        (self.folder / f"{rank}.json").write_text(json.dumps(self.numbers))


class Late(Callback):
    """Delays every process except the first in `test`."""

    def on_test_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Called by Lightning."""
        time.sleep(3 * (trainer.global_rank > 0))


class HereLogger(Logger):
    """Keeps nothing, in the working folder, as Weights & Biases names it where none is given."""

    name, version, save_dir = "here", 0, "."

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Called by Lightning."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Called by Lightning."""


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Every curve of a run's log, as (step, value)."""
    log = EventAccumulator(str(run)).Reload()
    return {tag: [(event.step, event.value) for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
