"""DreamBooth as a LightningModule: UNet, text encoder and VAE with the instance-plus-prior loss."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_dreambooth import optimization, randomness, resuming, trial
from lightning_dreambooth.data.dataset import Batch, Moments, Prior, TrainingSetup
from lightning_dreambooth.diffusion import objective
from lightning_dreambooth.diffusion.requests import ImageJob, Request
from lightning_dreambooth.diffusion.sampling import sample
from lightning_dreambooth.gradients import GradientRecord
from lightning_dreambooth.inputs import expand
from lightning_dreambooth.models.base_model import BaseModel
from lightning_dreambooth.models.lora import Lora, relative_change
from lightning_dreambooth.models.lora_files import check_lora
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.models.tokens import TokenIds
from lightning_dreambooth.models.trained_parts import Training, prepare
from lightning_dreambooth.optimization import Schedule, WeightAverage, weight_sample
from lightning_dreambooth.settings import check_precision, check_settings, check_training
from lightning_dreambooth.teacher import Teacher


class DreamBooth(pl.LightningModule):
    """Fine-tunes Stable Diffusion on instance and class images (Ruiz et al. 2023, arXiv:2208.12242).

    Args:
        pretrained: Hub id or folder of the base model in diffusers' layout, or a single file.
        vae: Hub id or folder of a VAE that replaces the base model's, for encoding, sampling and export.
        revision: Git revision of a hub model.
        variant: Weight variant such as fp16; weights are trained in fp32 whatever the files hold.
        prior_weight: Weight lambda of the prior loss (Eq. 2); 0 trains without it.
        prior: Targets of class rows: class images, or what a teacher, the base, predicts for instance images.
        train_text_encoder: Whether the text encoder is trained too.
        lora: Adapters (LoRA) in place of the weights: their rank, alpha, targets and dora, or a LoRA file, of this
            program, kohya or diffusers, which `fit` goes on from and others draw with; null trains the weights.
        lora_scale: Factor of what the adapters add; other than 1 only to draw and measure.
        weight_dtype: Number format of the weights of linear layers and convolutions of UNet and text encoder; bfloat16
            takes half the memory, and needs trainer.precision bf16-mixed. To train such weights, and not adapters, it
            needs an optimizer that rounds stochastically.
        text_encoder_lr: Learning rate of the text encoder; null takes the optimizer's.
        text_encoder_stop_step: Optimizer step from which the text encoder no longer changes.
        optimizer: Optimizer of the trained weights.
        lr_schedule: Learning-rate schedule after the warm-up.
        warmup_steps: Optimizer steps of linear warm-up.
        snr_gamma: Gamma of min-SNR weighting (arXiv:2303.09556) of instance and class rows; null weights equally.
        noise_offset: Strength of the per-channel noise offset.
        ema_decay: Decay of the moving average that is sampled and exported; null keeps none.
        gradient_checkpointing: Trades time for memory.
        update_in_backward: Updates each weight as soon as backward has its gradient, which is then freed.
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
        prior: Prior = "images",
        train_text_encoder: bool = False,
        lora: Lora | str | None = None,
        lora_scale: float = 1.0,
        weight_dtype: Literal["float32", "bfloat16"] = "float32",
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
        update_in_backward: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer", "lora"])
        self.hparams["lora"] = asdict(lora) if isinstance(lora, Lora) else lora  # states hold plain values
        self.files = ModelFiles(pretrained, vae, revision, variant)
        self.lora = Path(expand(lora)) if isinstance(lora, str) else lora
        self.lora_scale = lora_scale
        how = (train_text_encoder, gradient_checkpointing, self.lora, lora_scale, getattr(torch, weight_dtype), seed)
        self.training_options = Training(*how)
        self.base = BaseModel(self.files)
        self.prior_weight = prior_weight
        self.prior = prior if prior_weight > 0 else None
        self.train_text_encoder = train_text_encoder
        self.learning_rates = {"text_encoder": text_encoder_lr}
        self.stop_steps = {"text_encoder": text_encoder_stop_step}
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.warmup_steps = warmup_steps
        self.snr_gamma = snr_gamma
        self.noise_offset = noise_offset
        self.ema_decay = ema_decay
        self.update_in_backward = update_in_backward
        self.seed = seed
        self.base_sample: dict[str, Tensor] = {}  # of weights that are trained themselves, from setup on
        self.ema: WeightAverage | None = None
        self.teacher: Teacher | None = None  # for training, if the prior is one
        self.gradients: GradientRecord | None = None  # while training
        self.saved: resuming.SavedOptimizer | None = None  # of a resumed state
        check_settings(self.hparams)
        trial.build(optimizer)

    def check_training(self, trainer: pl.Trainer) -> None:
        """Raises InputError, before a model is loaded, if it cannot be trained as it is set by this trainer."""
        check_training(self.hparams, self.optimizer, trainer)

    def check_weights(self, training: bool, precision: str) -> None:
        """Checks number format and adapters before a model is loaded.

        Raises:
            InputError: if a LoRA file is not of this base, or not as it is trained; or if the trainer's precision does
                not compute with the number format of the weights.
        """
        check_precision(self.hparams, precision)
        if isinstance(self.lora, Path):
            check_lora(self.lora, self.files, self.train_text_encoder if training else None)

    @property
    def tuned_files(self) -> ModelFiles:
        """Files of what is drawn before training: the base model with the adapters of a LoRA file, if there is one."""
        return self.files.with_lora(self.lora, self.lora_scale) if isinstance(self.lora, Path) else self.files

    @property
    def training_setup(self) -> TrainingSetup:
        """The settings of this module that the datamodule needs."""
        return TrainingSetup(self.base, self.prior, self.train_text_encoder, self.seed, self.noise_offset)

    def setup(self, stage: str) -> None:
        """Takes the base model; `trained` then holds the weights to train, by part and name."""
        self.model = self.base.take()
        self.trained = prepare(self.model, self.training_options)
        if self.prior == "teacher" and stage == "fit":
            self.teacher = Teacher(self.model, [] if self.lora else self.trained)
        if self.ema_decay is not None:
            self.ema = WeightAverage(self.trained, self.ema_decay)
        if self.lora is None:
            self.base_sample = {part: weight_sample(named) for part, named in self.trained.items()}

    def release(self) -> None:
        """Frees the weights; `setup` loads them again."""
        del self.model, self.trained
        self.base_sample = {}
        self.ema = self.teacher = self.gradients = None  # they hold the weights, too

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One micro-batch => the combined loss and, for the log, the instance and prior losses."""
        randomness.seed_dropout(self.seed, batch.indices[0])
        loss = self.loss(batch)
        # With several processes, perhaps only one has a loss that is not finite; all find it in their shared gradient.
        if self.gradients and self.trainer.world_size == 1:
            self.gradients.record_loss(self.global_step + 1, loss.total.detach())
        halves = {"train/loss": loss.total, "train/instance_loss": loss.instance, "train/prior_loss": loss.prior}
        return {"loss": loss.total} | {name: half.detach() for name, half in halves.items() if half is not None}

    def loss(self, batch: Batch) -> objective.Loss:
        """Instance and class rows => the prior-preservation objective."""
        model, alphas_bar = self.model, self.model.alphas_bar
        images, prompts, (posterior, noise, timesteps) = batch.images, batch.prompts, batch.draws
        moments = images.values if isinstance(images, Moments) else model.encode(images.values)
        latents = objective.posterior_sample(moments, posterior)
        noisy = objective.add_noise(latents, noise, timesteps, alphas_bar)
        target = objective.target(latents, noise, timesteps, alphas_bar, model.prediction_type)
        if self.teacher is not None:
            target = self.teacher.teach(target, model, noisy, timesteps, prompts)
        conditioning = model.embed(prompts) if isinstance(prompts, TokenIds) else prompts
        prediction = model.predict(noisy, timesteps, conditioning)
        errors = objective.squared_error(prediction, target, batch.weights)
        if self.snr_gamma is not None:
            errors = errors * objective.min_snr_weights(timesteps, alphas_bar, self.snr_gamma, model.prediction_type)
        instance, *prior = errors.chunk(len(batch.halves))
        return objective.prior_preservation_loss(instance, prior[0] if prior else None, self.prior_weight)

    def predict_step(self, batch: list[ImageJob], batch_idx: int) -> Tensor:
        """Image jobs => images [jobs, 3, height, width] in [0, 1]; an empty batch gives no images."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        requests = [job.request for job in batch]
        return self.draw(requests, data.resolution_px) if requests else torch.empty(0, 3, 0, 0)

    validation_step = test_step = predict_step  # `Fidelity` and `PaperBenchmark` measure the images

    def draw(self, requests: list[Request], resolution_px: int) -> Tensor:
        """Requests => images [requests, 3, height, width] in [0, 1], by the averaged weights if there are any."""
        with self.averaged():
            return sample(self.model, requests, resolution_px)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside the block, dropout is off and the trained weights are exchanged for their average, if there is any.

        Raises:
            TrainingError: if a step has destroyed them.
        """
        if self.gradients:
            self.gradients.check()
        with self.model.without_dropout(), self.ema.swapped() if self.ema else nullcontext():
            yield

    def relative_changes(self) -> dict[str, Tensor]:
        """Relative change of each trained part from the base weights."""
        if self.lora:
            return {part: relative_change(getattr(self.model, part)) for part in self.trained}
        now = {part: weight_sample(named) for part, named in self.trained.items()}
        return {part: optimization.relative_change(now[part], self.base_sample[part].to(self.device)) for part in now}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One parameter group for each trained part, and the learning-rate schedule in optimizer steps.

        Raises:
            InputError: if the optimizer is of another kind than that of a resumed state, or cannot clip gradients.
        """
        optimizer = self.optimizer(optimization.parameter_groups(self.trained, self.learning_rates))
        if self.saved:
            resuming.take_configured(self.saved, optimizer, self.optimizer)
        scaler = optimization.scaler(self.trainer)
        optimization.check_clipping(optimizer, scaler, self.trainer.gradient_clip_val)
        self.gradients = GradientRecord(self.trained, scaler is not None, self.device)
        if self.update_in_backward:
            optimization.update_in_backward(optimizer, self.gradients.measure_early)
        if type(optimizer).__module__.startswith("bitsandbytes"):
            self.model.lay_out_contiguously()  # as its first step does, so that a resumed run computes the same bits
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        schedule = (self.lr_schedule, self.warmup_steps, self.trainer.max_steps)
        factors = [optimization.learning_rate_factor(*schedule, self.stop_steps.get(part)) for part in self.trained]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factors), "interval": "step"}}

    def on_train_start(self) -> None:
        """Replaces the learning rates of a resumed state by the configured ones."""
        optimization.set_learning_rates(self.lr_schedulers(), self.base_rates)  # type: ignore[arg-type]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Steps, frees the gradients, which Lightning would keep through the next forward pass, updates the average."""
        with optimization.without_waits(optimizer):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Measures the gradients, and clips them: by the norm that was measured, or each number of them.

        Lightning's own clipping refuses fused optimizers in bf16, although nothing is scaled there.
        """
        assert self.gradients
        self.gradients.measure(self.global_step + 1)
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(weights, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, self.gradients.total)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves frozen weights and names of code out of the state, and records the kind of optimizer.

        Raises:
            TrainingError: if a step has destroyed the weights.
        """
        if self.gradients:
            self.gradients.check()
        resuming.remove_names_of_code(checkpoint)
        checkpoint["optimizer"] = resuming.optimizer_kind(self.trainer.optimizers[0])
        saved = self._saved_weights()
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in saved}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the frozen weights to the state.

        Raises:
            InputError: if the state does not hold exactly the weights that this run trains.
        """
        self.saved = resuming.saved_optimizer(checkpoint)
        resuming.start_clock(checkpoint)
        resuming.check_adapters(checkpoint.get("hyper_parameters", {}).get("lora"), self.hparams["lora"])
        own, saved = self.state_dict(), self._saved_weights()
        resuming.check_weights(checkpoint["state_dict"], {name: own[name] for name in own if name in saved})
        checkpoint["state_dict"] = own | checkpoint["state_dict"]
        resuming.end_after_last_step(checkpoint, self.trainer.accumulate_grad_batches)

    def _saved_weights(self) -> set[str]:
        trained = {f"model.{part}.{name}" for part, named in self.trained.items() for name in named}
        return trained | {name for name in self.state_dict() if name.startswith("ema.")}
