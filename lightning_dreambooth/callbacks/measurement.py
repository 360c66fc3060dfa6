"""Measurement of fidelity: drawing of the evaluation prompts, gathering of all processes' images, metrics."""

from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from tqdm import tqdm

from lightning_dreambooth.callbacks.samples import show
from lightning_dreambooth.data.checks import check_lengths, warn
from lightning_dreambooth.data.grids import side_by_side
from lightning_dreambooth.data.image_store import ImageStore
from lightning_dreambooth.data.images import read_image
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.diffusion.requests import ImageJob, batches
from lightning_dreambooth.diffusion.sampling import as_bytes
from lightning_dreambooth.distributed import gather_dict, rank, shard
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.encoders import Encoders
from lightning_dreambooth.evaluation.evaluator import FidelityEvaluator, InstanceSet
from lightning_dreambooth.evaluation.metrics import GatheredImages
from lightning_dreambooth.evaluation.prompts import EvaluationPrompts, Probe, instances_with_texts
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.saving.runs import output_folder

VALIDATION = "validation"


class FidelityMeasurement:
    """Measures a model against the instance images of `data` and against a base model.

    Args:
        prompts: The evaluation prompts.
        encoders: The encoders that measure.
        batch_size: Images drawn at once.
        base_dir: Folder of the base model's images, shared between runs.
        data: The concepts, their images and the resolution.
        base: Files of the base model.

    Attributes:
        base: Metrics of the base model, after `prepare`.
        ceiling: Metrics of the instance images themselves, after `prepare`.
    """

    def __init__(
        self, prompts: EvaluationPrompts, encoders: Encoders, batch_size: int, base_dir: Path, data: DreamBoothData,
        base: ModelFiles,
    ) -> None:  # fmt: skip
        self.prompts, self.encoders, self.batch_size = prompts, encoders, batch_size
        self.base_dir, self.data, self.base_files = base_dir, data, base
        self.evaluator: FidelityEvaluator | None = None  # on the first process, which measures for all
        self.base: dict[str, float] = {}
        self.ceiling: dict[str, float] = {}

    @cached_property
    def probes(self) -> list[Probe]:
        """The images to measure."""
        return self.prompts.probes(self.data.concepts)

    @cached_property
    def batches(self) -> list[list[ImageJob]]:
        """The jobs of these images in batches, the same on every process."""
        return batches([ImageJob(i, probe.request) for i, probe in enumerate(self.probes)], self.batch_size)

    def check(self) -> None:
        """Checks prompts, images and encoders before a model is loaded.

        Raises:
            InputError: if they cannot be measured.
        """
        _ = self.base_files.fingerprint
        check_lengths([probe.request.prompt for probe in self.probes], self.data.tokenizer)
        for encoder in self.encoders.configured:
            encoder.check()
        if self.encoders.clip:
            texts = [text for _, pairs in instances_with_texts(self.data.concepts) for _, text in pairs]
            self.encoders.clip.check_texts([*texts, *(probe.text for probe in self.probes)])
        for concept, images in instances_with_texts(self.data.concepts):
            if self.encoders.clip and not concept.identifier:
                warn(f"{concept.instance_prompt!r} has no identifier, which val/clip_t should leave out of the prompts")
            if len(images) < 2:
                raise InputError(
                    f"{concept.instance_data_dir} holds 1 image; 2 or more are needed, because the ceilings of metrics "
                    "compare them with each other; add one, or set fidelity.clip_model and fidelity.dino to null"
                )

    def draw_base_images(self, trainer: pl.Trainer) -> None:
        """Draws the missing images of the base model, all processes together."""
        load = cache(lambda: self._load_base(trainer.strategy.root_device))
        with trainer.precision_plugin.forward_context():
            requests = [probe.request for probe in self.probes]
            self.base_images = self.base_store(trainer).fill(requests, load, "images of the base model")

    def base_store(self, trainer: pl.Trainer) -> ImageStore:
        """The images of the base model, drawn or not."""
        made_by = (self.base_files.fingerprint, self.data.resolution_px, str(trainer.precision))
        return ImageStore(self.base_dir, *made_by, self.batch_size)

    def _load_base(self, device: torch.device) -> StableDiffusion:
        if self.base_files is self.data.files:
            return self.data.base.load(device)
        self.data.base.release()  # one model in memory at a time
        return StableDiffusion.load(self.base_files).to(device)

    def prepare(self, trainer: pl.Trainer, device: torch.device) -> None:
        """Measures the images of the base model and the instance images, on the first process for all."""
        local = {}
        if trainer.is_global_zero:
            self.evaluator = FidelityEvaluator(
                self.probes, self.data.concepts,
                [
                    InstanceSet([read_image(image.path) for image, _ in pairs], [text for _, text in pairs])
                    for _, pairs in instances_with_texts(self.data.concepts)
                ],
                torch.stack([pil_to_tensor(read_image(path)) for path in self.base_images]), self.encoders, device,
            )  # fmt: skip
            local = {"base": self.evaluator.base, "ceiling": self.evaluator.ceiling}
        measured = gather_dict(local)
        self.base, self.ceiling = measured["base"], measured["ceiling"]
        if "score" not in self.base:
            warn("no score: the base model's images are as near to the instance images as these are to each other")

    def draw_and_measure(self, trainer: pl.Trainer, module: Any, file: str) -> dict[str, float]:
        """Draws with the current weights; returns the metrics by name, the same on every process."""
        self.begin(trainer)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for batch in tqdm(shard(self.batches), "images to measure", leave=False, disable=rank() > 0):
                requests = [job.request for job in batch]
                self.add(batch, module.draw(requests, self.data.resolution_px))
        return self.conclude(trainer, file)

    def begin(self, trainer: pl.Trainer) -> None:
        """Starts to gather images."""
        side, device = self.data.resolution_px, trainer.strategy.root_device
        self.gathered = GatheredImages().to(device)
        none = torch.empty(0, 3, side, side, dtype=torch.uint8, device=device)
        self.gathered.update(torch.empty(0, dtype=torch.long, device=device), none)  # some processes draw none

    def add(self, batch: list[ImageJob], images: Tensor) -> None:
        """Adds the images of a batch."""
        if batch:
            self.gathered.update(torch.tensor([job.number for job in batch], device=images.device), as_bytes(images))

    def conclude(self, trainer: pl.Trainer, file: str) -> dict[str, float]:
        """Measures the gathered images and writes them as a grid; returns the metrics by name."""
        images = self.gathered.compute().cpu()
        local = {}
        if self.evaluator is not None:
            self._show(trainer, images, file)
            local = {"metrics": self.evaluator.measure(images)}
        measured: dict[str, float] = gather_dict(local)["metrics"]
        return measured

    def _show(self, trainer: pl.Trainer, images: Tensor, file: str) -> None:
        """Writes a grid with a row per prompt: the base model's images and, from the same noise, this model's."""
        prompts = list(dict.fromkeys(probe.request.prompt for probe in self.probes))
        groups = {
            "base": [read_image(path) for path in self.base_images],
            "tuned": [to_pil_image(image) for image in images],
        }
        grid = side_by_side(groups, columns=len(self.prompts.seeds), labels=prompts)
        show(trainer, VALIDATION, grid, output_folder(trainer) / VALIDATION / file)
