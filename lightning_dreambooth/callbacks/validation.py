"""Fidelity while training, and of finished models: when it is measured, what is logged, when to stop."""

import hashlib
import time
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from tqdm import tqdm

from lightning_dreambooth.callbacks.monitor import stepped
from lightning_dreambooth.callbacks.samples import output_folder, show
from lightning_dreambooth.data.checks import warn
from lightning_dreambooth.data.concepts import held_out_images
from lightning_dreambooth.data.images import read_image, tile
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.diffusion.sampling import Request, Sampler, as_bytes, check_request
from lightning_dreambooth.distributed import first_of, gather_dict, rank, shard
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.encoders import Clip, Dino, Lpips
from lightning_dreambooth.evaluation.evaluator import FidelityEvaluator
from lightning_dreambooth.evaluation.fixed_noise_loss import STRATA, encode_fixed, fixed_losses, round_robin
from lightning_dreambooth.evaluation.metrics import GatheredImages
from lightning_dreambooth.evaluation.prompts import Protocol, StatedPrompt, instances_with_texts, unet_evaluations
from lightning_dreambooth.evaluation.tables import Row, best, write_csv
from lightning_dreambooth.module import DreamBooth

VALIDATION = "validation"
TABLE = "validation.csv"


class Fidelity(Callback):
    """Measures identity, prompt following and drift while training, and by `validate`.

    Args:
        clip_model: open_clip name, or folder with `open_clip_config.json`; null measures no prompt following.
        clip_pretrained: Tag or safetensors file of an open_clip name.
        dino: timm name such as `vit_small_patch16_224.dino`, or folder; null lets the CLIP image tower stand in.
        lpips: File with torchvision's AlexNet weights; null measures diversity by cosines.
        prompts: Prompts with an identifier, or `{prompt: ..., text: ...}`; null takes the concepts' instance prompts.
        unrelated_prompts: Prompts that training should leave alone, besides the class prompts.
        negative_prompt: What guidance leads away from.
        num_images: Images per prompt.
        seed: Seed of the first image of each prompt; the next ones count up.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        sampler: ddim, dpm++ (DPM-Solver++ 2M) or euler.
        batch_size: Images drawn at once.
        base: Hub id or folder of the model that drift is measured from; null takes model.pretrained.
        base_dir: Folder of that model's images, which runs share.
        every_n_steps: Optimizer steps between measurements; the last step is always measured.
        losses_every_n_steps: Optimizer steps between fixed-noise losses, which need no encoder; null computes none.
        patience: Measurements without a better score after which training stops; null never does.
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
        base_dir: str = "runs/.cache/base_images",
        every_n_steps: int = 200,
        losses_every_n_steps: int | None = 100,
        patience: int | None = None,
    ) -> None:
        if num_images < 2:
            raise InputError(f"fidelity.num_images is {num_images}, must be 2 or more: diversity compares them")
        bounds = {"batch_size": batch_size, "every_n_steps": every_n_steps, "patience": patience}
        for name, value in (bounds | {"losses_every_n_steps": losses_every_n_steps}).items():
            if value is not None and value < 1:
                raise InputError(f"fidelity.{name} is {value}, must be 1 or more")
        settings = (negative_prompt, steps, guidance_scale, sampler)
        check_request(Request("", seed, *settings))
        self.clip = Clip(clip_model, clip_pretrained) if clip_model else None
        self.dino = Dino(dino) if dino else None
        self.lpips = Lpips(lpips) if lpips else None
        self.protocol: Protocol | None = None
        measuring = {"lpips": lpips, "patience": patience, "prompts": prompts, "unrelated_prompts": unrelated_prompts}
        if given := [name for name, value in measuring.items() if value is not None and not (self.clip or self.dino)]:
            raise InputError(f"fidelity.{given[0]} is given, but no encoder: give fidelity.clip_model or fidelity.dino")
        if self.clip or self.dino:
            seeds = range(seed, seed + num_images)
            self.protocol = Protocol(prompts, unrelated_prompts or [], seeds, settings, batch_size, base, base_dir)
        self.every_n_steps = every_n_steps
        self.losses_every_n_steps = losses_every_n_steps
        self.patience = patience
        self.history: list[Row] = []
        self.evaluations = 0
        self.preparing_s = 0.0  # not logged yet
        self.measured_by = ""
        self.judge: FidelityEvaluator | None = None  # on the first process, which measures for all
        self.untuned: dict[str, float] = {}
        self.ceiling: dict[str, float] = {}

    def check(self, data: DreamBoothData) -> None:
        """Looks at prompts and images before a model is loaded.

        Raises:
            InputError: if they cannot be measured.
        """
        if self.protocol is None:
            return
        if self.protocol.base is not None:
            _ = data.base_files.fingerprint
        for encoder in (self.clip, self.dino, self.lpips):
            if encoder:
                encoder.check()
        if self.clip:
            texts = [text for _, own in instances_with_texts(data.concepts) for _, text in own]
            self.clip.check_texts([*texts, *(probe.text for probe in data.probes)])
        for concept, images in instances_with_texts(data.concepts):
            if self.clip and not concept.identifier:
                warn(f"{concept.instance_prompt!r} has no identifier, which val/clip_t should take out of the prompts")
            if len(images) < 2:
                raise InputError(
                    f"{concept.instance_data_dir} holds 1 image, and 2 or more are compared with each other to know "
                    "what a figure can reach; add one, or set fidelity.clip_model and fidelity.dino to null"
                )

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far."""
        return {"history": self.history, "unet_evaluations": self.evaluations, "measured_by": self.measured_by}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with what was measured."""
        self.history = list(state_dict.get("history", []))
        self.evaluations = int(state_dict.get("unet_evaluations", 0))
        self.measured_by = str(state_dict.get("measured_by", ""))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Reads what everything is compared with."""
        began = time.perf_counter()
        if self.losses_every_n_steps:
            data = _data(trainer)
            sets = {
                "instance": round_robin([concept.instances for concept in data.dataset.concepts]),
                "held_out": round_robin([held_out_images(concept) for concept in data.concepts]),
                "class": round_robin([concept.classes for concept in data.dataset.concepts]),
            }
            with trainer.precision_plugin.forward_context():
                encode = partial(encode_fixed, pl_module.model, resolution_px=data.resolution_px)
                self.fixed = {name: encode(images) for name, images in sets.items() if images}
        if self.protocol:
            self._compare_with_before(_data(trainer))
            self._prepare(trainer, pl_module)
            if isinstance(trainer.logger, pl.loggers.TensorBoardLogger):
                beside = {name: ["Multiline", [f"val/{name}{kind}$" for kind in ("", "/ceiling", "/untuned")]]
                          for name in self.untuned}  # fmt: skip
                trainer.logger.experiment.add_custom_scalars({"fidelity": beside})
        self.preparing_s = time.perf_counter() - began

    def _compare_with_before(self, data: DreamBoothData) -> None:
        """Scores of other prompts, images or encoders cannot be compared with those that will come."""
        names = [encoder and encoder.name for encoder in (self.clip, self.dino, self.lpips)]
        about = f"{names} {data.probes} {data.learned} {self.protocol and self.protocol.base}"
        measured_by = hashlib.sha256(about.encode()).hexdigest()[:16]
        if self.measured_by not in ("", measured_by) and any("score" in row for row in self.history):
            warn("what was measured before was measured with other prompts, images or encoders; it no longer counts")
            self.history = [{name: row[name] for name in row if not name.startswith("score")} for row in self.history]
        self.measured_by = measured_by

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures the untuned model, or what a stop did not leave the time for."""
        if not self.history or self.history[-1]["step"] < trainer.global_step:
            self._observe(trainer, pl_module)
        trainer.should_stop = trainer.should_stop or self._patience_ends()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measures every so many steps and at the last one, but not before the state of a run that is stopped."""
        stopped = trainer.should_stop and trainer.global_step != trainer.max_steps
        if stepped(trainer, batch_idx) and not stopped:
            self._observe(trainer, pl_module)

    def _observe(self, trainer: pl.Trainer, module: DreamBooth) -> None:
        """Adds a row to the history if one is due, the same on every process."""
        began, step = time.perf_counter() - self.preparing_s, trainer.global_step
        row: dict[str, float] = {}
        if self.losses_every_n_steps and _due(trainer, self.losses_every_n_steps):
            with trainer.precision_plugin.forward_context(), module.averaged():
                row |= fixed_losses(module.model, self.fixed, module.seed)
            self.evaluations += STRATA * sum(map(len, self.fixed.values()))
        if self.protocol and _due(trainer, self.every_n_steps):
            row |= self.untuned if step == 0 else self._draw_and_measure(trainer, module)
            self.evaluations += sum(unet_evaluations(probe.request) for probe in _data(trainer).probes)
        if not row:
            return
        self.preparing_s = 0.0
        self.history.append({"step": step} | row)
        if trainer.is_global_zero:
            write_csv(output_folder(trainer) / TABLE, self.history)
            if trainer.logger:
                cost = {"val/unet_evaluations": self.evaluations, "val/seconds": time.perf_counter() - began}
                trainer.logger.log_metrics(self._curves(row) | cost, step)
        trainer.should_stop = trainer.should_stop or self._patience_ends()

    def _curves(self, row: dict[str, float]) -> dict[str, float]:
        """Each figure, and beside it what the instance images reach and what the untuned model has."""
        curves = {f"val/{name}": value for name, value in row.items()}
        if row.keys() & self.untuned.keys():
            curves |= {f"val/{name}/ceiling": value for name, value in self.ceiling.items()}
            curves |= {f"val/{name}/untuned": value for name, value in self.untuned.items()}
        return curves

    def _patience_ends(self) -> bool:
        chosen = best(self.history)
        if chosen is None or self.patience is None:
            return False
        return sum("score" in row and row["step"] > chosen["step"] for row in self.history) >= self.patience

    def _draw_and_measure(self, trainer: pl.Trainer, module: DreamBooth) -> dict[str, float]:
        self._begin(trainer)
        mine = list(enumerate(shard(_data(trainer).probe_batches)))
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for number, requests in tqdm(mine, "images to measure", leave=False, disable=rank() > 0):
                self._take(trainer, module.validation_step(requests, number), number)
        return self._conclude(trainer, f"step-{trainer.global_step:06d}.png")

    def _begin(self, trainer: pl.Trainer) -> None:
        side, device = _data(trainer).resolution_px, trainer.strategy.root_device
        self.gathered = GatheredImages().to(device)
        nothing = torch.empty(0, 3, side, side, dtype=torch.uint8, device=device)
        self.gathered.update(torch.empty(0, dtype=torch.long, device=device), nothing)  # some processes draw none

    def _take(self, trainer: pl.Trainer, images: Tensor, number: int) -> None:
        """Takes the images of this process's number-th batch."""
        first = first_of(_data(trainer).probe_batches, number)
        self.gathered.update(torch.arange(first, first + len(images), device=images.device), as_bytes(images))

    def _conclude(self, trainer: pl.Trainer, file: str) -> dict[str, float]:
        images = self.gathered.compute().cpu()
        mine = {}
        if self.judge is not None:
            self._show(trainer, images, file)
            mine = {"figures": self.judge.measure(images)}
        figures: dict[str, float] = gather_dict(mine)["figures"]
        return figures

    def _show(self, trainer: pl.Trainer, images: Tensor, file: str) -> None:
        """A row per prompt: what the untuned model draws, then, with the same noise, what this one does."""
        data = _data(trainer)
        prompts = list(dict.fromkeys(probe.request.prompt for probe in data.probes))
        each = len(data.probes) // len(prompts)
        before = [read_image(path) for path in data.base_images]
        after = [to_pil_image(image) for image in images]
        starts = range(0, len(after), each)
        cells = [image for i in starts for image in (*before[i : i + each], *after[i : i + each])]
        grid = tile(cells, columns=2 * each, labels=[f"untuned, tuned: {prompt}" for prompt in prompts])
        show(trainer, VALIDATION, grid, output_folder(trainer) / VALIDATION / file)

    def _prepare(self, trainer: pl.Trainer, module: DreamBooth) -> None:
        mine = {}
        if trainer.is_global_zero:
            data = _data(trainer)
            sets = [own for _, own in instances_with_texts(data.concepts)]
            self.judge = FidelityEvaluator(
                data.probes, data.concepts,
                [[read_image(image.path) for image, _ in own] for own in sets],
                [[text for _, text in own] for own in sets],
                torch.stack([pil_to_tensor(read_image(path)) for path in data.base_images]),
                self.clip, self.dino, self.lpips, module.device,
            )  # fmt: skip
            mine = {"untuned": self.judge.untuned, "ceiling": self.judge.ceiling}
        figures = gather_dict(mine)
        self.untuned, self.ceiling = figures["untuned"], figures["ceiling"]
        if "score" not in self.untuned:
            warn("no score: what the untuned model draws is as near to the instance images as they are to each other")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begins to measure a finished model."""
        self._prepare(trainer, pl_module)
        self._begin(trainer)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: list[Request], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Takes the images of a batch."""
        self._take(trainer, outputs, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures a finished model."""
        self.history = [self._conclude(trainer, "images.png")]
        if trainer.is_global_zero:
            write_csv(output_folder(trainer) / TABLE, self.history)


def _data(trainer: pl.Trainer) -> DreamBoothData:
    return trainer.datamodule  # type: ignore[attr-defined]


def _due(trainer: pl.Trainer, every_n_steps: int) -> bool:
    return trainer.global_step % every_n_steps == 0 or trainer.global_step == trainer.max_steps
