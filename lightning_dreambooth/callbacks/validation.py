"""Fidelity of a model, while training and in `validate`: measuring steps, history, curves and patience."""

import hashlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from lightning_dreambooth.callbacks.cadence import completes_step, due, ends_early
from lightning_dreambooth.callbacks.loggers import log_layout, log_metrics
from lightning_dreambooth.callbacks.measurement import FidelityMeasurement
from lightning_dreambooth.data.checks import check_positive, warn
from lightning_dreambooth.data.concepts import held_out_images
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.diffusion.cost import unet_evaluations
from lightning_dreambooth.diffusion.requests import (
    MAX_IMAGES,
    ImageJob,
    Sampler,
    SamplingSettings,
    check_seed,
    of_section,
)  # fmt: skip
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.encoders import encoders_for
from lightning_dreambooth.evaluation.fixed_noise_loss import STRATA, encode_fixed, fixed_noise_losses, round_robin
from lightning_dreambooth.evaluation.history import MetricsRow, patience_ends, without_scores
from lightning_dreambooth.evaluation.prompts import EvaluationPrompts, StatedPrompt
from lightning_dreambooth.evaluation.score import PARTS
from lightning_dreambooth.evaluation.tables import write_csv
from lightning_dreambooth.inputs import expand
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.saving.runs import CACHE, output_folder, step_name

TABLE = "validation.csv"


class Fidelity(Callback):
    """Measures identity, prompt following and drift while training, and by `validate`.

    Args:
        clip_model: open_clip name, or folder with `open_clip_config.json`; null measures no prompt following.
        clip_pretrained: Tag or safetensors file of an open_clip name.
        dino: timm name such as `vit_small_patch16_224.dino`, or folder; null uses CLIP's image tower in its place.
        lpips: File with torchvision's AlexNet weights; null measures diversity by cosines.
        prompts: Prompts with an identifier, or `{prompt: ..., text: ...}`; null takes the concepts' instance prompts.
        unrelated_prompts: Prompts that training should not change, besides the class prompts.
        negative_prompt: Prompt that guidance leads away from.
        num_images: Images per prompt.
        seed: Seed of the first image of each prompt; the next ones count up.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        sampler: Algorithm that removes the noise.
        batch_size: Images drawn at once.
        base: Hub id or folder of the base model to compare with; null takes model.pretrained.
        base_dir: Folder of the base model's images, which runs share.
        every_n_steps: Optimizer steps between measurements; the last step is always measured.
        losses_every_n_steps: Optimizer steps between fixed-noise losses, which need no encoder; null computes none.
        patience: Measurements without a better score after which training stops; null never stops.
    """

    def __init__(
        self,
        clip_model: str | None = None,
        clip_pretrained: str | None = None,
        dino: str | None = None,
        lpips: str | None = None,
        prompts: list[str | StatedPrompt] | None = None,
        unrelated_prompts: list[str] | None = None,
        negative_prompt: str = "",
        num_images: int = 2,
        seed: int = 1000,
        steps: int = 12,
        guidance_scale: float = 7.5,
        sampler: Sampler = "dpm++",
        batch_size: int = 4,
        base: str | None = None,
        base_dir: str = str(CACHE / "base_images"),
        every_n_steps: int = 200,
        losses_every_n_steps: int | None = 100,
        patience: int | None = None,
    ) -> None:
        if num_images < 2:
            raise InputError(f"fidelity.num_images is {num_images}, must be 2 or more: diversity compares them")
        check_positive("fidelity", {"num_images": num_images, "batch_size": batch_size}, MAX_IMAGES)
        counts = {"every_n_steps": every_n_steps, "losses_every_n_steps": losses_every_n_steps, "patience": patience}
        check_positive("fidelity", counts)
        with of_section("fidelity."):
            check_seed(seed)
            settings = SamplingSettings(negative_prompt, steps, guidance_scale, sampler)
        self.encoders = encoders_for(clip_model, clip_pretrained, dino, lpips)
        needs_encoder: dict[str, Any] = {"lpips": lpips, "patience": patience, "prompts": prompts}
        needs_encoder |= {"unrelated_prompts": unrelated_prompts}
        if given := [name for name, value in needs_encoder.items() if value is not None and not self.encoders.by_role]:
            raise InputError(f"fidelity.{given[0]} is given, but no encoder: give fidelity.clip_model or fidelity.dino")
        self.prompts = EvaluationPrompts(prompts, unrelated_prompts or [], range(seed, seed + num_images), settings)
        self.batch_size, self.base, self.base_dir = batch_size, base, Path(expand(base_dir))
        self.every_n_steps, self.losses_every_n_steps, self.patience = every_n_steps, losses_every_n_steps, patience
        self.history: list[MetricsRow] = []
        self.evaluations = 0
        self.preparing_s, self.measured_by = 0.0, ""  # seconds not logged yet; digest of what decides scores
        self.measurement: FidelityMeasurement | None = None  # from `check` on, if there is an encoder

    def check(self, data: DreamBoothData) -> None:
        """Checks prompts and images before a model is loaded.

        Raises:
            InputError: if they cannot be measured.
        """
        if self.encoders.by_role and (self.measurement is None or self.measurement.data is not data):
            base = data.files if self.base is None else ModelFiles(self.base, data.files.vae, None, data.files.variant)
            settings = (self.prompts, self.encoders, self.batch_size, self.base_dir)
            self.measurement = FidelityMeasurement(*settings, data, base)
            self.measurement.check()

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Draws the base model's images before the module is loaded, so that only one model is in memory."""
        if stage == "fit":
            self.check(_data(trainer))
        if stage in ("fit", "validate") and self.measurement:
            self.measurement.draw_base_images(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The history of metrics, its cost, and a digest of what decides the scores."""
        return {"history": self.history, "unet_evaluations": self.evaluations, "measured_by": self.measured_by}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the history of a state."""
        self.history = list(state_dict.get("history", []))
        self.evaluations = int(state_dict.get("unet_evaluations", 0))
        self.measured_by = str(state_dict.get("measured_by", ""))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Encodes the fixed images of losses, and measures base and instance images."""
        began, data = time.perf_counter(), _data(trainer)
        if self.losses_every_n_steps:
            sets = {
                "instance": round_robin([concept.instances for concept in data.dataset.concepts]),
                "held_out": round_robin([held_out_images(concept) for concept in data.concepts]),
                "class": round_robin([concept.classes for concept in data.dataset.concepts]),
            }
            with trainer.precision_plugin.forward_context():
                encode = partial(encode_fixed, pl_module.model, resolution_px=data.resolution_px)
                self.fixed = {name: encode(images) for name, images in sets.items() if images}
        if self.measurement:
            self._drop_other_scores(self.measurement, data)
            self.measurement.prepare(trainer, pl_module.device)
            tags = {
                name: [f"val/{name}{kind}$" for kind in ("", "/ceiling", "/base")] for name in self.measurement.base
            }
            log_layout(trainer, {"fidelity": tags})
        self.preparing_s = time.perf_counter() - began

    def _drop_other_scores(self, measurement: FidelityMeasurement, data: DreamBoothData) -> None:
        """Removes earlier scores by other prompts, images or encoders, which cannot be compared with new ones."""
        names = [encoder and encoder.name for encoder in self.encoders]
        decided_by = f"{PARTS} {names} {measurement.probes} {data.data_digests} {self.base}"
        measured_by = hashlib.sha256(decided_by.encode()).hexdigest()[:16]
        if self.measured_by not in ("", measured_by) and any("score" in row for row in self.history):
            warn("earlier scores were measured with other prompts, images, encoders or parts; they no longer count")
            self.history = without_scores(self.history)
        self.measured_by = measured_by

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures the base model, or a step whose measurement was due when the resumed run was stopped."""
        if not self.history or self.history[-1]["step"] < trainer.global_step:
            self._measure(trainer, pl_module)
        trainer.should_stop = trainer.should_stop or patience_ends(self.history, self.patience)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measures when it is due; not in a run that is being stopped, which must save its state first."""
        if completes_step(trainer, batch_idx) and not ends_early(trainer):
            self._measure(trainer, pl_module)

    def _measure(self, trainer: pl.Trainer, module: DreamBooth) -> None:
        """Adds a row to the history if one is due, the same on every process."""
        began, step = time.perf_counter() - self.preparing_s, trainer.global_step
        row: dict[str, float] = {}
        if self.losses_every_n_steps and due(trainer, self.losses_every_n_steps):
            with trainer.precision_plugin.forward_context(), module.averaged():
                row |= fixed_noise_losses(module.model, self.fixed, module.seed)
            self.evaluations += STRATA * sum(map(len, self.fixed.values()))
        if self.measurement and due(trainer, self.every_n_steps):
            file = f"{step_name(step)}.png"
            row |= self.measurement.base if step == 0 else self.measurement.draw_and_measure(trainer, module, file)
            self.evaluations += unet_evaluations(probe.request for probe in self.measurement.probes)
        if not row:
            return
        self.preparing_s = 0.0
        self.history.append({"step": step} | row)
        if trainer.is_global_zero:
            write_csv(output_folder(trainer) / TABLE, self.history)
            cost = {"val/unet_evaluations": self.evaluations, "val/seconds": time.perf_counter() - began}
            log_metrics(trainer, self._curves(row) | cost, step)
        trainer.should_stop = trainer.should_stop or patience_ends(self.history, self.patience)

    def _curves(self, row: dict[str, float]) -> dict[str, float]:
        """Each metric as a curve, beside its ceiling and its value for the base model."""
        curves = {f"val/{name}": value for name, value in row.items()}
        if self.measurement and row.keys() & self.measurement.base.keys():
            curves |= {f"val/{name}/ceiling": value for name, value in self.measurement.ceiling.items()}
            curves |= {f"val/{name}/base": value for name, value in self.measurement.base.items()}
        return curves

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Starts to gather the images of a finished model."""
        if self.measurement:
            self.measurement.prepare(trainer, pl_module.device)
            self.measurement.begin(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: list[ImageJob], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Adds the images of a batch."""
        if self.measurement:
            self.measurement.add(batch, outputs)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures a finished model."""
        if self.measurement:
            self.history = [self.measurement.conclude(trainer, "images.png")]
            if trainer.is_global_zero:
                write_csv(output_folder(trainer) / TABLE, self.history)


def _data(trainer: pl.Trainer) -> DreamBoothData:
    return trainer.datamodule  # type: ignore[attr-defined]
