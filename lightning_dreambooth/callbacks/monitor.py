"""Monitoring of training: losses, gradients, weight changes, throughput; stops a run that cannot learn."""

import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from lightning_dreambooth.callbacks.cadence import completes_step
from lightning_dreambooth.callbacks.loggers import log_metrics
from lightning_dreambooth.data.dataset import Batch
from lightning_dreambooth.errors import TrainingError
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.optimization import gradient_norm

SCALER_SKIPS = 20  # a gradient scaler halves its first scale of 65536 to 1 in sixteen skipped steps
STABILITY_HINT = "lower the learning rate, or use trainer.precision bf16-mixed or 32"


class TrainingMonitor(Callback):
    """Logs losses, gradients, weight changes, learning rates and throughput; stops a run that learns nothing."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts counting."""
        self.losses: list[dict[str, Tensor]] = []
        self.rates: dict[str, float] = {}
        self.norms: dict[str, float] = {}
        self.updates = self.skipped = self.samples = 0
        self.seconds = self.waited_before = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Starts the clock, which leaves out the time of other callbacks between steps."""
        self.began = time.perf_counter()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Checks the loss.

        Raises:
            TrainingError: if the loss is not finite.
        """
        # With several processes, perhaps only one has such a loss; all then find it in their shared gradient.
        if trainer.world_size == 1 and not loss.isfinite():
            raise TrainingError(f"{_place(trainer)}: the loss is not finite; {STABILITY_HINT}")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Measures the gradient and stops a run before an update that would destroy the weights or change nothing.

        Raises:
            TrainingError: if a gradient is not finite, or all are zero.
        """
        module: DreamBooth = pl_module
        norms = torch.stack([gradient_norm(named).to(module.device) for named in module.trained.values()]).tolist()
        self.norms = dict(zip(module.trained, norms, strict=True))
        self.rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        finite = all(map(math.isfinite, norms))
        self.updates += finite
        self.skipped = 0 if finite else self.skipped + 1
        # A gradient scaler skips such steps itself while it lowers its scale.
        tolerated = SCALER_SKIPS if getattr(trainer.precision_plugin, "scaler", None) else 0
        for part, norm in self.norms.items():
            if norm == 0:
                raise TrainingError(f"{_place(trainer)}: no gradient reaches the {part}, nothing would be learned")
            if not math.isfinite(norm) and self.skipped > tolerated:
                gradients = {name: weight.grad for name, weight in module.trained[part].items()}
                bad = [f".{name}" for name, grad in gradients.items() if grad is not None and not grad.isfinite().all()]
                where = part + (bad[0] if bad else "")
                raise TrainingError(f"{_place(trainer)}: {where} has a gradient that is not finite; {STABILITY_HINT}")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Logs the means over an optimizer step, not the values of its last micro-batch."""
        self.losses.append({name: value for name, value in outputs.items() if name != "loss"})
        self.samples += len(batch.indices) * trainer.world_size
        self.seconds += time.perf_counter() - self.began
        if not completes_step(trainer, batch_idx):
            return
        means = {name: torch.stack([loss[name] for loss in self.losses]).mean() for name in self.losses[0]}
        self.losses = []
        for name, mean in means.items():
            pl_module.log(
                name, mean, prog_bar=name == "train/loss", logger=False, sync_dist=trainer.world_size > 1, batch_size=1
            )
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % every == 0 or trainer.global_step == 1:
            self._log(trainer, pl_module, means)

    def _log(self, trainer: pl.Trainer, module: DreamBooth, losses: dict[str, Tensor]) -> None:
        changes = {part: float(change) for part, change in module.relative_changes().items()}
        for part, change in changes.items():
            if change == 0 and self.rates[part] > 0 and self.updates:
                raise TrainingError(f"step {trainer.global_step}: the {part} has not changed; raise the learning rate")
        values = {name: float(trainer.strategy.reduce(loss, reduce_op="mean")) for name, loss in losses.items()}
        monitored = {"gradient_norm": self.norms, "weight_change": changes, "learning_rate": self.rates}
        values |= {
            f"watch/{kind}/{part}": value for kind, by_part in monitored.items() for part, value in by_part.items()
        }
        loader: Any = trainer.train_dataloader
        waited = loader.waited_seconds - self.waited_before
        values["train/samples_per_second"] = self.samples / (self.seconds + waited)
        self.samples, self.seconds, self.waited_before = 0, 0.0, loader.waited_seconds
        log_metrics(trainer, values, trainer.global_step)


def _place(trainer: pl.Trainer) -> str:
    return f"stopped before the update of step {trainer.global_step + 1}"
