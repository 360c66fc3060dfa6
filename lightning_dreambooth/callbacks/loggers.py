"""Logging of metrics, images, configs and chart layouts to every logger of a trainer that can show them.

Lightning's own `log_metrics` works for every logger; images and configs need a different call for each.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment  # type: ignore[attr-defined]
from torchvision.transforms.functional import pil_to_tensor

from lightning_dreambooth.saving.order import next_resumes


class RunLog(TensorBoardLogger):
    """TensorBoard's log in a run's folder, in a file for each time that the run was resumed.

    Args:
        run: Folder of the run.
        purge_step: Step from which events in earlier files no longer count; None if the run is new.
    """

    def __init__(self, run: Path, purge_step: int | None) -> None:
        super().__init__(run.parent, run.name, version="", default_hp_metric=False, purge_step=purge_step)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer. Opening it removes the file of a killed `fit` that has saved nothing: all of it is logged again.

        Not even the steps before `purge_step` count there: a step whose measurement a stop has left out is measured
        when the run is resumed, so that it is later than the state.
        """
        if self._experiment is None:
            run = Path(self.log_dir)
            suffix = f".resumed-{next_resumes(run)}"
            for file in run.glob(f"events.out.tfevents.*{suffix}"):
                file.unlink()
            self._kwargs["filename_suffix"] = suffix
            threading.excepthook = _except_of_the_disk
        return super().experiment


def _except_of_the_disk(thrown: threading.ExceptHookArgs) -> None:
    """Prints an error in a thread, but not of the disk: after TensorBoard's thread, the next write raises it."""
    if not issubclass(thrown.exc_type, OSError):
        threading.__excepthook__(thrown)


def log_metrics(trainer: pl.Trainer, values: Mapping[str, float], step: int) -> None:
    """Logs numbers by tag with every logger. Tags begin with the section that shows them.

    `train/` has losses, `val/` metrics; `watch/` has what explains a problem (gradient norms, learning rates, weight
    changes) and is listed after them.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step)


def log_image(trainer: pl.Trainer, name: str, image: Image.Image, step: int) -> None:
    """Logs an RGB image with TensorBoard, flushed to disk, and with Weights & Biases."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, pil_to_tensor(image), step)  # (3, height, width) of bytes
            logger.experiment.flush()
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [image], step)


def log_config(trainer: pl.Trainer, text: str, values: Mapping[str, Any]) -> None:
    """Logs the config of a run with every logger.

    Args:
        trainer: The trainer of the loggers.
        text: YAML, which TensorBoard shows.
        values: The same as nested dictionaries, by which other loggers sort and filter runs.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            # Its table of hyper-parameters needs a final metric, which does not exist at the start of a run.
            logger.experiment.add_text("config", f"```yaml\n{text}\n```")
        else:
            logger.log_hyperparams(dict(values))


def log_layout(trainer: pl.Trainer, charts: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Groups tags into charts of TensorBoard: section => title => patterns of tags."""
    layout = {name: {title: ["Multiline", tags] for title, tags in section.items()} for name, section in charts.items()}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars(layout)


def flush(trainer: pl.Trainer) -> None:
    """Writes buffered events of TensorBoard's loggers to disk, so that the log is complete before a state is saved."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.flush()
