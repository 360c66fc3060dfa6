"""What is watched while training: the log, and when a run had better stop."""

import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from lightning_dreambooth.data.dataset import Batch
from lightning_dreambooth.errors import TrainingError
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.optimization import gradient_norm

SCALER_SKIPS = 20  # from its first scale of 65536 a gradient scaler is down to 1 after sixteen
STABILITY_HINT = "lower the learning rate, or use trainer.precision bf16-mixed or 32"


def stepped(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch completed an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class TrainingMonitor(Callback):
    """Logs losses, gradients, weight changes, learning rates and throughput; stops a run that learns nothing."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts counting."""
        self.losses: list[dict[str, Tensor]] = []
        self.rates: dict[str, float] = {}
        self.norms: dict[str, float] = {}
        self.updates = self.skipped = self.samples = 0
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Starts the clock, which does not count what other callbacks do between steps."""
        self.began = time.perf_counter()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Refuses a loss that is no number.

        Raises:
            TrainingError: if the loss is not finite.
        """
        # Of several processes only this one might see it; their shared gradient then tells all of them.
        if trainer.world_size == 1 and not loss.isfinite():
            raise TrainingError(f"{self._where(trainer)}: the loss is not finite; {STABILITY_HINT}")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Measures the gradient and refuses an update that would do harm or nothing.

        Raises:
            TrainingError: if a gradient is not finite, or all are zero.
        """
        parts: dict[str, torch.nn.Module] = pl_module.trained
        norms = torch.stack([gradient_norm(part).to(pl_module.device) for part in parts.values()]).tolist()
        self.norms = dict(zip(parts, norms, strict=True))
        self.rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        finite = all(map(math.isfinite, norms))
        self.updates += finite
        self.skipped = 0 if finite else self.skipped + 1
        # A gradient scaler finds its scale by such steps and skips them by itself.
        tolerated = SCALER_SKIPS if getattr(trainer.precision_plugin, "scaler", None) else 0
        for name, norm in self.norms.items():
            if norm == 0:
                raise TrainingError(f"{self._where(trainer)}: no gradient reaches the {name}, nothing would be learned")
            if not math.isfinite(norm) and self.skipped > tolerated:
                gradients = ((weight, p.grad) for weight, p in parts[name].named_parameters() if p.grad is not None)
                bad = next((f".{weight}" for weight, grad in gradients if not grad.isfinite().all()), "")
                raise TrainingError(
                    f"{self._where(trainer)}: {name}{bad} has a gradient that is not finite; {STABILITY_HINT}"
                )

    def _where(self, trainer: pl.Trainer) -> str:
        return f"stopped before the update of step {trainer.global_step + 1}"

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Logs the means of an optimizer step, not of its last micro-batch."""
        self.losses.append({name: value for name, value in outputs.items() if name != "loss"})
        self.samples += len(batch.numbers) * trainer.world_size
        self.seconds += time.perf_counter() - self.began
        if not stepped(trainer, batch_idx):
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

    def _log(self, trainer: pl.Trainer, pl_module: DreamBooth, losses: dict[str, Tensor]) -> None:
        changes = {name: float(change) for name, change in pl_module.relative_changes().items()}
        for name, change in changes.items():
            if change == 0 and self.rates[name] > 0 and self.updates:
                raise TrainingError(f"step {trainer.global_step}: the {name} has not changed; raise the learning rate")
        values = {name: float(trainer.strategy.reduce(loss, reduce_op="mean")) for name, loss in losses.items()}
        values |= {f"gradient_norm/{name}": norm for name, norm in self.norms.items()}
        values |= {f"weight_change/{name}": change for name, change in changes.items()}
        values |= {f"learning_rate/{name}": rate for name, rate in self.rates.items()}
        loader: Any = trainer.train_dataloader
        values["train/samples_per_second"] = self.samples / (self.seconds + loader.waited_seconds)
        self.samples, self.seconds, loader.waited_seconds = 0, 0.0, 0.0
        if trainer.logger:
            trainer.logger.log_metrics(values, trainer.global_step)
