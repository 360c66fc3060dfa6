"""Checkpointing: which resumable states and exports of a run are written and kept."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from lightning_dreambooth.callbacks.cadence import completes_step, due, ends_early
from lightning_dreambooth.callbacks.loggers import flush
from lightning_dreambooth.callbacks.validation import Fidelity
from lightning_dreambooth.data.checks import check_positive
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.errors import InputError, TrainingError
from lightning_dreambooth.evaluation.history import MetricsRow, best_first
from lightning_dreambooth.files import check_room
from lightning_dreambooth.models.single_file import check_has_names
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.saving.checkpoint_io import RESUMES
from lightning_dreambooth.saving.export import METRICS_FILE, ExportFormat, export
from lightning_dreambooth.saving.order import EXPORTS, STATES, next_resumes, outdated
from lightning_dreambooth.saving.runs import output_folder, step_name
from lightning_dreambooth.saving.states import state_path

FLOAT32_BYTES = 4


class Checkpointing(Callback):
    """Writes resumable states and exports.

    Args:
        every_n_steps: Optimizer steps between saves; the last step is always saved.
        keep_states: Number of newest states to keep; two, in case the newest is damaged.
        keep_exports: Number of newest exports to keep; older ones are removed after a newer one is complete, and those
            of later steps than the current one stay.
        keep_best: Number of exports with the highest `fidelity` scores to keep too; written when measured.
        dtype: Number format of the exported weights.
        fused: Whether a run that trains adapters exports, besides the LoRA file, a diffusers folder with them fused.
        single_file: Whether an export also holds the whole model as one file, for ComfyUI and others.
    """

    def __init__(
        self,
        every_n_steps: int = 200,
        keep_states: int = 2,
        keep_exports: int = 2,
        keep_best: int = 1,
        dtype: Literal["float16", "float32"] = "float16",
        fused: bool = False,
        single_file: bool = False,
    ) -> None:
        counts = {"every_n_steps": every_n_steps, "keep_states": keep_states, "keep_exports": keep_exports}
        check_positive("checkpoint", counts | {"keep_best": keep_best})
        self.every_n_steps = every_n_steps
        self.keep_states = keep_states
        self.keep_exports = keep_exports
        self.keep_best = keep_best
        self.form = ExportFormat(getattr(torch, dtype), fused, single_file)
        self.saved_step = 0
        self.resumes = 0

    def check(self, module: DreamBooth) -> None:
        """Raises InputError if what shall be exported does not exist."""
        if self.form.fused and module.lora is None:
            raise InputError("checkpoint.fused is true, but model.lora is not given: all weights are exported anyway")

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Counts how often the run was resumed."""
        if stage == "fit" and trainer.is_global_zero:
            self.resumes = next_resumes(output_folder(trainer))

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds to a state what its age is read from."""
        checkpoint[RESUMES] = self.resumes

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Checks that the disk has room for a state and an export."""
        if trainer.is_global_zero:
            trained = sum(weight.numel() for named in pl_module.trained.values() for weight in named.values())
            if self.form.single_file:
                check_has_names(pl_module.model)
            whole = sum(weight.numel() for weight in pl_module.model.parameters())
            exported = trained if pl_module.lora else whole
            exported += whole * (self.form.single_file + (self.form.fused and pl_module.lora is not None))
            copies = 3 if pl_module.ema is None else 4  # weights, Adam's two moments, average
            check_room(output_folder(trainer), trained * copies * FLOAT32_BYTES + exported * self.form.dtype.itemsize)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Exports a resumed step if it is among the best but was measured only now, after a stop."""
        self.saved_step = trainer.global_step
        self._prune(trainer)  # not earlier: only a restored history and step tell what to keep
        folder = self._export_folder(trainer)
        stale = folder.is_dir() and not (folder / METRICS_FILE).is_file()
        if trainer.global_step > 0 and self._metrics(trainer) and (stale or folder in self._best_folders(trainer)):
            self._save_export(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves an export and a state when they are due.

        The state is written last, so that everything else of its step exists when a run is resumed from it.
        """
        if not completes_step(trainer, batch_idx) or ends_early(trainer):
            return
        save = due(trainer, self.every_n_steps)
        try:
            if save or self._export_folder(trainer) in self._best_folders(trainer):
                self._save_export(trainer, pl_module)
        except TrainingError:  # what was trained is not lost with an export that diffusers cannot read
            with suppress(TrainingError):  # on a full disk, which the first error tells
                if save:  # on every process
                    self._save_state(trainer)
            raise
        if save:
            self._save_state(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves a run that is ended early by a signal, `trainer.max_time` or another callback.

        The state is written first: after a signal there may be little time.
        """
        if trainer.global_step > self.saved_step:
            self._save_state(trainer)
            self._save_export(trainer, pl_module)

    def _save_state(self, trainer: pl.Trainer) -> None:
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            flush(trainer)
        trainer.save_checkpoint(state_path(output_folder(trainer), trainer.global_step), weights_only=False)
        self._prune(trainer)

    def _save_export(self, trainer: pl.Trainer, module: DreamBooth) -> None:
        if trainer.is_global_zero:
            data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
            folder, metrics = self._export_folder(trainer), self._metrics(trainer)
            export(module, data, folder, self.form, metrics, self.resumes)
            self._prune(trainer)

    def _export_folder(self, trainer: pl.Trainer) -> Path:
        return output_folder(trainer) / EXPORTS / step_name(trainer.global_step)

    def _prune(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        run, step, best = output_folder(trainer), trainer.global_step, self._best_folders(trainer)
        for state in outdated(run / STATES, self.keep_states, step):
            state.unlink()
        for folder in outdated(run / EXPORTS, self.keep_exports, step):
            if folder not in best:
                shutil.rmtree(folder)

    def _history(self, trainer: pl.Trainer) -> list[MetricsRow]:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        return next((callback.history for callback in callbacks if isinstance(callback, Fidelity)), [])

    def _metrics(self, trainer: pl.Trainer) -> MetricsRow:
        """The metrics measured at this step; empty if nothing was measured."""
        history = self._history(trainer)
        return history[-1] if history and history[-1]["step"] == trainer.global_step else {}

    def _best_folders(self, trainer: pl.Trainer) -> list[Path]:
        """Folders of the exports of the best steps, written or not."""
        steps = [row["step"] for row in best_first(self._history(trainer))[: self.keep_best]]
        return [output_folder(trainer) / EXPORTS / step_name(step) for step in steps]
