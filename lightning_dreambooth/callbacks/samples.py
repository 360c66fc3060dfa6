"""Sample images: grids while training, single files in `predict`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from lightning_dreambooth.callbacks.cadence import completes_step, due, ends_early
from lightning_dreambooth.callbacks.loggers import log_image
from lightning_dreambooth.data.checks import check_lengths, check_positive
from lightning_dreambooth.data.concepts import Concept
from lightning_dreambooth.data.grids import tile
from lightning_dreambooth.data.image_store import ImageStore, write_job
from lightning_dreambooth.data.images import View, crop, read_image, write_png
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.diffusion.requests import (
    MAX_IMAGES,
    ImageJob,
    Request,
    Sampler,
    SamplingSettings,
    batches,
    check_seed,
    of_section,
    requests_for,
)  # fmt: skip
from lightning_dreambooth.diffusion.sampling import as_bytes
from lightning_dreambooth.distributed import barrier
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import expand, read_text
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.saving.runs import CACHE, output_folder, step_name

SAMPLES = "samples"
CONTACT_SHEET = 64  # training images shown at most


def show(trainer: pl.Trainer, name: str, image: Image.Image, path: Path) -> None:
    """Logs an image, then writes it into the run's folder: every file is then in the log too."""
    log_image(trainer, name, image, trainer.global_step)
    write_png(image, path, {"step": trainer.global_step})


class Samples(Callback):
    """Draws images: grids while training, single files in `predict`.

    Args:
        prompts: Prompts that are drawn; null takes the instance and class prompts of the concepts.
        prompts_file: Text file with one prompt per line, in place of prompts.
        negative_prompt: Prompt that guidance leads away from.
        num_images: Images per prompt.
        seed: Seed of the first image of each prompt; the next ones count up, so that grids compare across steps.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale w (arXiv:2207.12598); 1 switches guidance off.
        sampler: Algorithm that removes the noise.
        batch_size: Images drawn at once.
        every_n_steps: Optimizer steps between grids; one is always drawn before the first step and after the last.
        base_dir: Linked to fidelity.
    """

    def __init__(
        self,
        prompts: list[str] | str | None = None,
        prompts_file: str | None = None,
        negative_prompt: str = "",
        num_images: int = 4,
        seed: int = 0,
        steps: int = 25,
        guidance_scale: float = 7.5,
        sampler: Sampler = "ddim",
        batch_size: int = 4,
        every_n_steps: int = 100,
        base_dir: str = str(CACHE / "base_images"),
    ) -> None:
        self.base_dir = Path(expand(base_dir))
        self.prompts = [prompts] if isinstance(prompts, str) else prompts
        if prompts_file is not None:
            file = Path(expand(prompts_file))
            if self.prompts or not file.is_file():
                raise InputError(f"samples.prompts_file {file} must be a file, given without samples.prompts")
            lines = read_text(file).splitlines()
            self.prompts = [line.strip() for line in lines if line.strip()]
        check_positive("samples", {"num_images": num_images, "batch_size": batch_size}, MAX_IMAGES)
        check_positive("samples", {"every_n_steps": every_n_steps})
        with of_section("samples."):
            check_seed(seed)
            self.settings = SamplingSettings(negative_prompt, steps, guidance_scale, sampler)
        self.seeds = range(seed, seed + num_images)
        self.batch_size = batch_size
        self.every_n_steps = every_n_steps
        self.drawn_step = -1  # of the last grid

    def state_dict(self) -> dict[str, Any]:
        """The step of the last grid: a grid that is due and later than it is missing in the log."""
        return {"drawn_step": self.drawn_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues after the grid of a state."""
        self.drawn_step = int(state_dict["drawn_step"])

    def check(self, data: DreamBoothData) -> None:
        """Warns of prompts whose end the model does not read."""
        check_lengths(self.prompts or [], data.tokenizer)

    def requests(self, concepts: Sequence[Concept]) -> list[Request]:
        """The images of a grid, prompt by prompt."""
        return requests_for(self._prompts(concepts), self.seeds, self.settings)

    def _prompts(self, concepts: Sequence[Concept]) -> list[str]:
        """The configured prompts, else those of the concepts."""
        by_concept = [prompt for concept in concepts for prompt in (concept.instance_prompt, concept.class_prompt)]
        return self.prompts or list(dict.fromkeys(prompt for prompt in by_concept if prompt))

    def predict_batches(self) -> list[list[ImageJob]]:
        """The image jobs of `predict` in batches; paths are relative to its folder.

        Raises:
            InputError: if there are no prompts.
        """
        if not self.prompts:
            raise InputError("nothing to draw: give samples.prompts or samples.prompts_file")
        requests = requests_for(self.prompts, self.seeds, self.settings)
        jobs = [ImageJob(i, request, Path(image_name(i, request))) for i, request in enumerate(requests)]
        return batches(jobs, self.batch_size)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs and writes a sheet of the training images."""
        if not trainer.is_global_zero:
            return
        data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
        sets = [
            images for concept in data.dataset.concepts for images in (concept.instances, concept.classes) if images
        ]
        shown = [image for images in sets for image in images[: max(1, CONTACT_SHEET // len(sets))]]
        images = [crop(read_image(image.path), min(128, data.resolution_px), View()) for image in shown]
        show(trainer, "training images", tile(images, columns=8), output_folder(trainer) / "training_images.png")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Shows what the model draws before training, or draws a grid that was due when the resumed run was stopped."""
        if trainer.global_step == 0:
            self._show_grid(trainer, self._base_images(trainer, pl_module))
        elif due(trainer, self.every_n_steps) and self.drawn_step < trainer.global_step:
            self._draw_grid(trainer, pl_module)

    def _base_images(self, trainer: pl.Trainer, module: DreamBooth) -> list[Image.Image]:
        """Images of the model before training, which all runs that begin with it share."""
        data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
        begins_with = (module.tuned_files.fingerprint, data.resolution_px, str(trainer.precision))
        store = ImageStore(self.base_dir, *begins_with, self.batch_size)
        with module.averaged(), trainer.precision_plugin.forward_context():
            paths = store.fill(self.requests(data.concepts), lambda: module.model, "samples before training")
        return [read_image(path) for path in paths]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draws a grid when one is due; not in a run that is being stopped, which must save its state first."""
        if due(trainer, self.every_n_steps) and completes_step(trainer, batch_idx) and not ends_early(trainer):
            self._draw_grid(trainer, pl_module)

    def _file(self, trainer: pl.Trainer) -> Path:
        return output_folder(trainer) / SAMPLES / f"{step_name(trainer.global_step)}.png"

    def _draw_grid(self, trainer: pl.Trainer, module: DreamBooth) -> None:
        data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
        requests = self.requests(data.concepts) if trainer.is_global_zero else []
        jobs = [ImageJob(number, request) for number, request in enumerate(requests)]
        with trainer.precision_plugin.forward_context():
            images = [
                to_pil_image(image)
                for batch in batches(jobs, self.batch_size)
                for image in as_bytes(module.draw([job.request for job in batch], data.resolution_px)).cpu()
            ]
        self._show_grid(trainer, images)

    def _show_grid(self, trainer: pl.Trainer, images: list[Image.Image]) -> None:
        self.drawn_step = trainer.global_step
        if trainer.is_global_zero:
            data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
            grid = tile(images, columns=len(self.seeds), labels=self._prompts(data.concepts))
            show(trainer, "samples", grid, self._file(trainer))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Takes the folder of the first process; other processes may have chosen another while several runs started."""
        self.folder = Path(trainer.strategy.broadcast(output_folder(trainer)))

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Tensor, batch: list[ImageJob], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Writes each image with its request and its model."""
        for job, image in zip(batch, as_bytes(outputs).cpu(), strict=True):
            write_job(self._in_folder(job), to_pil_image(image), pl_module.tuned_files.name)

    def _in_folder(self, job: ImageJob) -> ImageJob:
        return job._replace(path=self.folder / str(job.path))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Writes a grid of all images, a row per prompt."""
        barrier()
        if trainer.is_global_zero:
            jobs = [job for batch in trainer.datamodule.batches for job in batch]  # type: ignore[attr-defined]
            images = [read_image(self.folder / str(job.path)) for job in jobs]
            write_png(tile(images, len(self.seeds), self.prompts or ()), self.folder / "grid.png", {})


def image_name(number: int, request: Request) -> str:
    """File name of the image of a request: its number, the words of its prompt, and its seed."""
    words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:60]
    return f"{number:04d}-{words}-seed{request.seed}.png"
