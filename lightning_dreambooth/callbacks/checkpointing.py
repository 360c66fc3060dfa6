"""What is kept of a run: resumable states and exports."""

from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from filelock import BaseFileLock, FileLock
from pytorch_lightning.callbacks import Callback

from lightning_dreambooth.callbacks.monitor import stepped
from lightning_dreambooth.callbacks.samples import SAMPLES, output_folder
from lightning_dreambooth.callbacks.validation import VALIDATION, Fidelity
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.distributed import LOCK, acquired
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.tables import Row, best_first
from lightning_dreambooth.files import check_room, remove_parts
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.saving import states
from lightning_dreambooth.saving.export import FIGURES, export

EXPORTS = "exports"


class Checkpointing(Callback):
    """Keeps resumable states and exports.

    Args:
        every_n_steps: Optimizer steps between saves; the last step is always saved.
        keep_states: How many states stay; one more than the newest, in case that is damaged.
        keep_exports: How many of the newest exports stay; older ones are removed after a newer one is complete.
        keep_best: How many exports with the highest score of `fidelity` stay besides, written when they are measured.
        dtype: Weights of the exports.
    """

    def __init__(
        self,
        every_n_steps: int = 200,
        keep_states: int = 2,
        keep_exports: int = 2,
        keep_best: int = 1,
        dtype: Literal["float16", "float32"] = "float16",
    ) -> None:
        bounds = {"every_n_steps": every_n_steps, "keep_states": keep_states, "keep_exports": keep_exports}
        bounds |= {"keep_best": keep_best}
        for name, value in bounds.items():
            if value < 1:
                raise InputError(f"checkpoint.{name} is {value}, must be 1 or more")
        self.every_n_steps = every_n_steps
        self.keep_states = keep_states
        self.keep_exports = keep_exports
        self.keep_best = keep_best
        self.dtype = getattr(torch, dtype)
        self.saved_step = 0
        self.lock: BaseFileLock | None = None

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Takes the run's folder for this run alone, and removes what a kill has left there."""
        if stage == "fit" and trainer.is_global_zero:
            folder = output_folder(trainer)
            self.lock = FileLock(folder / LOCK)
            if not acquired(self.lock, patience_seconds=0):
                raise InputError(f"{folder} is written to by another run that still goes on; choose another name")
            remove_parts(folder, folder / states.STATES, folder / EXPORTS, folder / SAMPLES, folder / VALIDATION)
            self._prune(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Gives the folder free."""
        if self.lock is not None:
            self.lock.release()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Gives the folder free."""
        self.teardown(trainer, pl_module, "fit")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Asks for room for a state and an export."""
        if trainer.is_global_zero:
            trained = sum(weight.numel() for part in pl_module.trained.values() for weight in part.parameters())
            exported = sum(weight.numel() for weight in pl_module.model.parameters())
            copies = 3 if pl_module.ema is None else 4  # weights, Adam's two moments, average
            check_room(output_folder(trainer), trained * copies * 4 + exported * self.dtype.itemsize)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """What is resumed has been saved, but for the figures that a stop did not leave the time for."""
        self.saved_step = trainer.global_step
        export_ = self._export(trainer)
        stale = export_.is_dir() and not (export_ / FIGURES).is_file()
        if trainer.global_step > 0 and self._measured(trainer) and (stale or export_ in self._best(trainer)):
            self._save_export(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves when it is time.

        The state comes last: whatever a run has written before it, a run that goes on from there finds.
        """
        stopped = trainer.should_stop and trainer.global_step != trainer.max_steps
        if not stepped(trainer, batch_idx) or stopped:
            return
        due = trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps
        if due or self._export(trainer) in self._best(trainer):
            self._save_export(trainer, pl_module)
        if due:
            self._save_state(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves a run that was ended early, by a signal, `trainer.max_time` or another callback.

        The state comes first: after a signal there may be little time.
        """
        if trainer.global_step > self.saved_step:
            self._save_state(trainer)
            self._save_export(trainer, pl_module)

    def _save_state(self, trainer: pl.Trainer) -> None:
        self.saved_step = trainer.global_step
        if trainer.is_global_zero and isinstance(trainer.logger, pl.loggers.TensorBoardLogger):
            trainer.logger.experiment.flush()
        trainer.save_checkpoint(states.state_path(output_folder(trainer), trainer.global_step), weights_only=False)
        self._prune(trainer)

    def _save_export(self, trainer: pl.Trainer, module: DreamBooth) -> None:
        if trainer.is_global_zero:
            data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
            export(module, data, self._export(trainer), self.dtype, self._measured(trainer))
            self._prune(trainer)

    def _export(self, trainer: pl.Trainer) -> Path:
        return output_folder(trainer) / EXPORTS / f"step-{trainer.global_step:06d}"

    def _prune(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        states.remove(states.newest_first(output_folder(trainer) / states.STATES)[self.keep_states :])
        exports = output_folder(trainer) / EXPORTS
        stay = {*states.newest_first(exports)[: self.keep_exports], *self._best(trainer)}
        states.remove([export for export in states.newest_first(exports) if export not in stay])

    def _history(self, trainer: pl.Trainer) -> list[Row]:
        return next((each.history for each in trainer.callbacks if isinstance(each, Fidelity)), [])  # type: ignore[attr-defined]

    def _measured(self, trainer: pl.Trainer) -> Row:
        """What was measured at this step."""
        history = self._history(trainer)
        return history[-1] if history and history[-1]["step"] == trainer.global_step else {}

    def _best(self, trainer: pl.Trainer) -> list[Path]:
        """Where the exports of this run's best steps lie, or will lie."""
        steps = [row["step"] for row in best_first(self._history(trainer))[: self.keep_best]]
        return [self._export(trainer).with_name(f"step-{step:06d}") for step in steps]
