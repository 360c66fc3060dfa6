"""DreamBooth as a LightningModule: UNet, text encoder and VAE with the instance-plus-prior loss."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from lightning_dreambooth import randomness
from lightning_dreambooth.data.dataset import Batch
from lightning_dreambooth.diffusion.objective import (
    Loss,
    add_noise,
    min_snr_weights,
    posterior_sample,
    prior_preservation_loss,
    squared_error,
    target,
)  # fmt: skip
from lightning_dreambooth.diffusion.sampling import Request, sample
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.optimization import Schedule, ema_update, learning_rate_factor, probe, relative_change


class DreamBooth(pl.LightningModule):
    """Fine-tunes Stable Diffusion on instance and class images (Ruiz et al. 2023, arXiv:2208.12242).

    Args:
        pretrained: Hub id or folder of the base model, in diffusers' layout.
        vae: Hub id or folder of a VAE that replaces the base model's, for encoding, sampling and export.
        revision: Git revision of a hub model.
        variant: Weight variant such as fp16; masters are fp32 whatever the files hold.
        prior_weight: Lambda of the prior-preservation loss (Eq. 2); at 0 there is no class branch at all.
        train_text_encoder: Whether the text encoder is trained along with the UNet.
        text_encoder_lr: Learning rate of the text encoder; null takes the optimizer's.
        text_encoder_stop_step: Optimizer step from which the text encoder no longer changes.
        optimizer: Optimizer of the trained parts.
        lr_schedule: Course of the learning rate after the warm-up.
        warmup_steps: Optimizer steps of linear warm-up.
        snr_gamma: Gamma of min-SNR weighting (arXiv:2303.09556) of instance and class rows; null weighs equally.
        noise_offset: Strength of the per-channel noise offset.
        ema_decay: Decay of the average that is sampled and exported; null keeps none.
        gradient_checkpointing: Trade time for memory.
        seed: Linked to seed_everything.
    """

    model: StableDiffusion  # from setup on

    def __init__(
        self,
        pretrained: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
        vae: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        prior_weight: float = 1.0,
        train_text_encoder: bool = False,
        text_encoder_lr: float | None = None,
        text_encoder_stop_step: int | None = None,
        optimizer: Callable[[Iterable[Any]], Optimizer] = lambda parameters: torch.optim.AdamW(
            parameters, lr=5e-6, weight_decay=1e-2
        ),
        lr_schedule: Schedule = "constant",
        warmup_steps: int = 0,
        snr_gamma: float | None = None,
        noise_offset: float = 0.0,
        ema_decay: float | None = None,
        gradient_checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"])
        self.pretrained = pretrained
        self.vae = vae
        self.revision = revision
        self.variant = variant
        self.prior_weight = prior_weight
        self.train_text_encoder = train_text_encoder
        self.text_encoder_lr = text_encoder_lr
        self.text_encoder_stop_step = text_encoder_stop_step
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.warmup_steps = warmup_steps
        self.snr_gamma = snr_gamma
        self.noise_offset = noise_offset
        self.ema_decay = ema_decay
        self.gradient_checkpointing = gradient_checkpointing
        self.seed = seed
        self.ema: AveragedModel | None = None
        self.saved_with: str | None = None  # the kind of optimizer of a resumed state
        self._check_values()

    def _check_values(self) -> None:
        for name in ("prior_weight", "warmup_steps", "noise_offset"):
            if getattr(self, name) < 0:
                raise InputError(f"model.{name} is {getattr(self, name)}, must be 0 or more")
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            raise InputError(f"model.snr_gamma is {self.snr_gamma}, must be above 0; null switches the weighting off")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise InputError(f"model.ema_decay is {self.ema_decay}, must lie between 0 and 1; null keeps no average")
        of_text_encoder = (self.text_encoder_lr, self.text_encoder_stop_step)
        if not self.train_text_encoder and of_text_encoder != (None, None):
            raise InputError("model.text_encoder_lr and text_encoder_stop_step need model.train_text_encoder: true")

    def setup(self, stage: str) -> None:
        """Loads the original weights and marks what is trained."""
        files = ModelFiles(self.pretrained, self.vae, self.revision, self.variant)
        self.model = StableDiffusion.load(files.folder, files.vae_folder, self.variant)
        for part in self.trained.values():
            part.requires_grad_(True).train()
        if self.gradient_checkpointing:
            self.model.unet.enable_gradient_checkpointing()
            if self.train_text_encoder:
                self.model.text_encoder.activation_checkpointing_enable()
        if self.ema_decay is not None:
            self.ema = AveragedModel(nn.ModuleDict(self.trained), multi_avg_fn=ema_update(self.ema_decay))
            self.ema.requires_grad_(False)
        self.start = {name: probe(part) for name, part in self.trained.items()}

    @property
    def trained(self) -> dict[str, nn.Module]:
        """The parts that are trained, by name."""
        parts: dict[str, nn.Module] = {"unet": self.model.unet}
        return parts | {"text_encoder": self.model.text_encoder} if self.train_text_encoder else parts

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One micro-batch => the combined loss and, for the log, its halves."""
        loss = self.loss(batch)
        halves = {"train/loss": loss.total, "train/instance_loss": loss.instance, "train/prior_loss": loss.prior}
        return {"loss": loss.total} | {name: half.detach() for name, half in halves.items() if half is not None}

    def loss(self, batch: Batch) -> Loss:
        """Instance and class rows => the prior-preservation objective."""
        model, alphas_bar, kind = self.model, self.model.alphas_bar, self.model.prediction_type
        moments = batch.images if batch.images.is_floating_point() else model.encode(batch.images)
        context = batch.texts if batch.texts.is_floating_point() else model.embed(batch.texts)
        rows, shape = len(moments), (moments.shape[1] // 2, *moments.shape[2:])
        latents = posterior_sample(moments, self._draw(randomness.normal, "posterior", batch, rows, shape))
        noise = self._draw(randomness.normal, "noise", batch, rows, shape)
        if self.noise_offset:
            offset = self._draw(randomness.normal, "noise offset", batch, rows, (shape[0], 1, 1))
            noise = noise + self.noise_offset * offset
        timesteps = self._draw(randomness.integers, "timestep", batch, rows, len(alphas_bar))
        noisy = add_noise(latents, noise, timesteps, alphas_bar)
        prediction = model.unet(noisy, timesteps, context, return_dict=False)[0]
        errors = squared_error(prediction, target(latents, noise, timesteps, alphas_bar, kind))
        if self.snr_gamma is not None:
            errors = errors * min_snr_weights(timesteps, alphas_bar, self.snr_gamma, kind)
        return prior_preservation_loss(errors, self.prior_weight)

    def _draw(self, draw: Callable[..., Tensor], purpose: str, batch: Batch, rows: int, size: Any) -> Tensor:
        """One draw for each row; instance and class rows of a sample have draws of their own."""
        halves = ("instance", "class")[: rows // len(batch.numbers)]
        drawn = torch.cat([draw(self.seed, f"{purpose} {half}", batch.numbers, size) for half in halves])
        return drawn.to(self.device, non_blocking=True)

    def predict_step(self, batch: list[Request], batch_idx: int) -> Tensor:
        """Requests => images [images, 3, height, width] in [0, 1]."""
        return self.draw(batch, self.trainer.datamodule.resolution_px)  # type: ignore[attr-defined]

    def validation_step(self, batch: list[Request], batch_idx: int) -> Tensor:
        """Requests => images, which `Fidelity` measures."""
        return self.predict_step(batch, batch_idx)

    def test_step(self, batch: list[Request], batch_idx: int) -> Tensor:
        """Requests => images, which `Benchmark` measures; none if nothing is left to draw."""
        return self.predict_step(batch, batch_idx) if batch else torch.empty(0, 3, 0, 0)

    def draw(self, requests: list[Request], resolution_px: int) -> Tensor:
        """Requests => images in [0, 1], from the averaged weights if there are any."""
        with self.averaged():
            return sample(self.model, requests, resolution_px)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Exchanges the trained weights for their average; without an average nothing changes."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        if self.ema is None:
            return
        current = nn.ModuleDict(self.trained).parameters()
        for weight, average in zip(current, self.ema.module.parameters(), strict=True):
            weight.data, average.data = average.data, weight.data

    def relative_changes(self) -> dict[str, Tensor]:
        """How far each trained part has moved from the original weights, relative to their size."""
        now = {name: probe(part) for name, part in self.trained.items()}
        return {name: relative_change(now[name], self.start[name].to(self.device)) for name in now}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One parameter group for each trained part, and the learning rate's course in optimizer steps.

        Raises:
            InputError: if it is another kind of optimizer than that of a resumed state, or cannot clip.
        """
        groups: list[dict[str, Any]] = [
            {"name": name, "params": list(part.parameters())} for name, part in self.trained.items()
        ]
        if self.text_encoder_lr is not None:
            groups[1]["lr"] = self.text_encoder_lr
        optimizer = self.optimizer(groups)
        if self.saved_with not in (None, _kind(optimizer)):
            raise InputError(
                f"the state was saved with {self.saved_with}, which model.optimizer must name to go on; "
                f"it is {_kind(optimizer)}"
            )
        if type(optimizer).__module__.startswith("bitsandbytes"):
            # Its first step lays the weights out so; from the beginning, a resumed run computes in the same order.
            self.model.unet.to(memory_format=torch.contiguous_format)
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled and self.trainer.gradient_clip_val and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise InputError(
                "a fused optimizer cannot clip gradients under trainer.precision 16-mixed; use bf16-mixed, "
                "set the optimizer's fused to false, or trainer.gradient_clip_val to null"
            )
        self.learning_rates = [group["lr"] for group in optimizer.param_groups]
        course = (self.lr_schedule, self.warmup_steps, self.trainer.max_steps)
        factors = [learning_rate_factor(*course), learning_rate_factor(*course, self.text_encoder_stop_step)]
        scheduler = LambdaLR(optimizer, factors[: len(groups)])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Lets the given learning rates win over those in a resumed state."""
        scheduler: Any = self.lr_schedulers()
        scheduler.base_lrs = self.learning_rates
        for group, rate, factor in zip(
            scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = rate * factor(scheduler.last_epoch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Steps, then follows with the average."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            self.ema.update_parameters(nn.ModuleDict(self.trained))

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips, also for fused optimizers in bf16, which Lightning refuses as if gradients were scaled there."""
        precision = self.trainer.precision_plugin
        unscaled = isinstance(precision, MixedPrecision) and precision.scaler is None
        if unscaled and gradient_clip_val and gradient_clip_algorithm in (None, "norm"):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(weights, gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the base model's frozen weights and names of code out of the state, and names its optimizer."""
        for hyper_parameters in ("hyper_parameters", "datamodule_hyper_parameters"):
            checkpoint.get(hyper_parameters, {}).pop("_instantiator", None)
        checkpoint["optimizer"] = _kind(self.trainer.optimizers[0])
        ours = self._own_weights()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in ours}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Puts the frozen weights back.

        Raises:
            InputError: if the state holds other weights than this run trains.
        """
        self.saved_with = checkpoint.get("optimizer")  # earlier versions did not say
        saved, ours = set(checkpoint["state_dict"]), self._own_weights()
        if saved != ours:
            raise InputError(
                f"the state holds {len(saved)} trained weights, this run trains {len(ours)}, of which "
                f"{len(saved & ours)} are the same; resume with the model settings it was saved with"
            )
        checkpoint["state_dict"] = self.state_dict() | checkpoint["state_dict"]
        self._resume_after_a_step(checkpoint)

    def _resume_after_a_step(self, checkpoint: dict[str, Any]) -> None:
        """Sets Lightning's progress to the end of the last optimizer step, wherever in the run the state was saved.

        A finished run then goes on when max_steps is raised, and one ended amid accumulation repeats its last step.
        """
        done = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        fit_loop = checkpoint["loops"]["fit_loop"]
        batches, epoch = fit_loop["epoch_loop.batch_progress"], fit_loop["epoch_progress"]["current"]
        for count in (batches["total"], batches["current"]):
            count |= {"ready": done, "started": done, "processed": done, "completed": done - 1}
        batches["is_last_batch"] = False
        epoch |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def _own_weights(self) -> set[str]:
        trained = {f"model.{part}.{name}" for part, module in self.trained.items() for name in module.state_dict()}
        return trained | {name for name in self.state_dict() if name.startswith("ema.")}


def _kind(optimizer: Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
