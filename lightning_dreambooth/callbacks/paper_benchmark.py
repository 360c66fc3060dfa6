"""The DreamBooth paper's benchmark of one subject, in `test`."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torchvision.transforms.functional import to_pil_image

from lightning_dreambooth.callbacks.samples import image_name
from lightning_dreambooth.data.checks import check_positive
from lightning_dreambooth.data.grids import tile
from lightning_dreambooth.data.image_store import write_job
from lightning_dreambooth.data.images import read_image, write_png
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.diffusion.requests import (
    MAX_IMAGES,
    ImageJob,
    Sampler,
    SamplingSettings,
    check_seed,
    of_section,
    requests_for,
)
from lightning_dreambooth.diffusion.sampling import as_bytes
from lightning_dreambooth.distributed import barrier
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.dreambench import read_subject
from lightning_dreambooth.evaluation.encoders import Encoders
from lightning_dreambooth.evaluation.paper_protocol import IMAGES, RECORD, PaperTest
from lightning_dreambooth.evaluation.prompts import strip_identifier
from lightning_dreambooth.evaluation.tables import write_json
from lightning_dreambooth.inputs import expand


class PaperBenchmark(Callback):
    """Draws the paper's prompts for a subject and measures them with the encoders of `fidelity`.

    Args:
        folder: Folder with `prompts_and_classes.txt` and a folder per subject, as google/dreambooth has them.
        subject: Name of the subject that the model was trained on.
        num_images: Images per prompt; the paper draws 4.
        seed: Seed of the first image of each prompt; the next ones count up.
        negative_prompt: Prompt that guidance leads away from.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale.
        sampler: Algorithm that removes the noise.
        batch_size: Images drawn at once.
    """

    test: PaperTest  # from `prepare` on

    def __init__(
        self,
        folder: str = "data/dreambench",
        subject: str | None = None,
        num_images: int = 4,
        seed: int = 0,
        negative_prompt: str = "",
        steps: int = 50,
        guidance_scale: float = 7.5,
        sampler: Sampler = "ddim",
        batch_size: int = 4,
    ) -> None:
        check_positive("benchmark", {"num_images": num_images, "batch_size": batch_size}, MAX_IMAGES)
        with of_section("benchmark."):
            check_seed(seed)
            self.settings = SamplingSettings(negative_prompt, steps, guidance_scale, sampler)
        self.folder = Path(expand(folder))
        self.subject_name = subject
        self.seeds = range(seed, seed + num_images)
        self.batch_size = batch_size

    def prepare(
        self, data: DreamBoothData, folder: Path, encoders: Encoders, weights: Mapping[str, str | None], precision: str
    ) -> list[list[ImageJob]]:
        """Jobs of the images that are not drawn yet, in batches.

        Args:
            data: Resolution and identifier.
            folder: Folder of the test.
            encoders: The encoders that measure.
            weights: Fingerprints of the model and of the state whose weights replace its.
            precision: The trainer's precision.

        Raises:
            InputError: if there is no such subject, no encoder, or the folder holds another test.
        """
        if self.subject_name is None:
            raise InputError("nothing to test: give benchmark.subject, and benchmark.folder where its images lie")
        if not encoders.by_role:
            raise InputError("nothing to measure with: give fidelity.clip_model or fidelity.dino")
        identifier = data.identifier
        if not identifier:
            raise InputError("give data.identifier, the word that the model was trained with, such as sks")
        subject = read_subject(self.folder, self.subject_name)
        prompts = [prompt.format(identifier, subject.class_name) for prompt in subject.prompts]
        requests = requests_for(prompts, self.seeds, self.settings)
        texts = [strip_identifier(request.prompt, identifier) for request in requests]
        for encoder in encoders.by_role.values():
            encoder.check()
        if encoders.clip:
            encoders.clip.check_texts(texts)
        record = {
            **weights, "subject": subject.name,
            "identifier": identifier, "prompts": list(dict.fromkeys(prompts)), "seed": self.seeds[0],
            "images_per_prompt": len(self.seeds), "settings": asdict(self.settings), "batch_size": self.batch_size,
            "resolution_px": data.resolution_px, "precision": precision,
        }  # fmt: skip
        paths = [folder / IMAGES / image_name(number, request) for number, request in enumerate(requests)]
        jobs = [ImageJob(i, request, path) for i, (request, path) in enumerate(zip(requests, paths, strict=True))]
        self.test = PaperTest(subject, encoders, folder, jobs, texts, record)
        self.test.check_record()
        return self.test.missing_batches(self.batch_size)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Records the test before the first image is drawn."""
        if trainer.is_global_zero:
            write_json(self.test.folder / RECORD, self.test.record)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: list[ImageJob], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Writes the images of a batch that are missing."""
        for job, image in zip(batch, as_bytes(outputs).cpu(), strict=True):
            if job.path and not job.path.is_file():
                write_job(job, to_pil_image(image), self.test.record["model"])

    def on_test_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Waits until all processes have written their images."""
        barrier()

    def measure(self, device: torch.device) -> str:
        """Measures all images, writes tables and a grid, and returns the summary as Markdown."""
        images = [read_image(job.path) for job in self.test.jobs if job.path]
        write_png(tile(images, columns=len(self.seeds)), self.test.folder / "grid.png", {})
        return self.test.measure(device)
