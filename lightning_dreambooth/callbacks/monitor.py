"""Monitoring of training: losses, gradients, weight changes, throughput; stops a run that cannot learn."""

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


class TrainingMonitor(Callback):
    """Logs losses, gradients, weight changes, learning rates and throughput; stops a run that learns nothing.

    Between the steps that are logged it reads nothing from the device, because training would wait for the answer.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts counting."""
        self.losses: list[dict[str, Tensor]] = []
        self.rates: dict[str, float] = {}
        self.samples = 0
        self.seconds = self.waited_before = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Starts the clock, which leaves out the time of other callbacks between steps."""
        self.began = time.perf_counter()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Keeps the learning rates of the step, which change after it."""
        self.rates = {group["name"]: group["lr"] for group in optimizer.param_groups}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Logs the means over an optimizer step, not the values of its last micro-batch."""
        self.losses.append({name: value for name, value in outputs.items() if name != "loss"})
        self.samples += len(batch.indices) * trainer.world_size
        means: dict[str, Tensor] = {}
        if completes_step(trainer, batch_idx):
            means = {name: torch.stack([loss[name] for loss in self.losses]).mean() for name in self.losses[0]}
            self.losses = []
            for name, mean in means.items():
                pl_module.log(name, mean, logger=False, sync_dist=trainer.world_size > 1, batch_size=1)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if means and (trainer.global_step % every == 0 or trainer.global_step == 1):
            self._log(trainer, pl_module, means)
        else:
            self.seconds += time.perf_counter() - self.began

    def _log(self, trainer: pl.Trainer, module: DreamBooth, losses: dict[str, Tensor]) -> None:
        """Logs everything.

        Raises:
            TrainingError: if a loss or gradient was not finite, no gradient reached a part, or a part has not changed.
        """
        record = module.gradients
        assert record
        record.check()  # this waits until all steps are done, so the clock may be read
        self.seconds += time.perf_counter() - self.began
        changes = {part: float(change) for part, change in module.relative_changes().items()}
        for part, change in changes.items():
            if change == 0 and self.rates[part] > 0 and record.updates:
                raise TrainingError(f"step {trainer.global_step}: the {part} has not changed; raise the learning rate")
        values = {name: float(trainer.strategy.reduce(loss, reduce_op="mean")) for name, loss in losses.items()}
        # On the CPU: the progress bar reads it in every step.
        module.log("loss", torch.tensor(values["train/loss"]), prog_bar=True, logger=False, batch_size=1)
        norms = {part: float(norm) for part, norm in record.norms.items()}
        monitored = {"gradient_norm": norms, "weight_change": changes, "learning_rate": self.rates}
        values |= {
            f"watch/{kind}/{part}": value for kind, by_part in monitored.items() for part, value in by_part.items()
        }
        loader: Any = trainer.train_dataloader
        waited = loader.waited_seconds - self.waited_before
        values["train/samples_per_second"] = self.samples / (self.seconds + waited)
        self.samples, self.seconds, self.waited_before = 0, 0.0, loader.waited_seconds
        log_metrics(trainer, values, trainer.global_step)
