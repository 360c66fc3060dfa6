"""Images for people: grids while training, single files in `predict`."""

import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from lightning_dreambooth.callbacks.monitor import stepped
from lightning_dreambooth.data.images import View, crop, read_image, read_text, tile, write_png
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.diffusion.sampling import Request, Sampler, as_bytes, batches, check_request
from lightning_dreambooth.distributed import barrier, first_of
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.module import DreamBooth

SAMPLES = "samples"
CONTACT_SHEET = 64  # training images shown at most


def output_folder(trainer: pl.Trainer) -> Path:
    """Where everything of a run lies: `runs/<name>`."""
    return Path(trainer.default_root_dir)


def show(trainer: pl.Trainer, name: str, image: Image.Image, path: Path) -> None:
    """Writes an image into the TensorBoard log, then beside the run: a file that is there is in the log as well."""
    if isinstance(trainer.logger, pl.loggers.TensorBoardLogger):
        trainer.logger.experiment.add_image(name, pil_to_tensor(image), trainer.global_step)
        trainer.logger.experiment.flush()
    write_png(image, path, {"step": trainer.global_step})


class Samples(Callback):
    """Draws images: grids while training, single files in `predict`.

    Args:
        prompts: What is drawn; null draws the instance and class prompts of the concepts.
        prompts_file: Text file with one prompt per line, in place of prompts.
        negative_prompt: What guidance leads away from.
        num_images: Images per prompt.
        seed: Seed of the first image of each prompt; the next ones count up, so that grids compare across steps.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale w (arXiv:2207.12598); 1 switches it off.
        sampler: ddim, dpm++ (DPM-Solver++ 2M) or euler.
        batch_size: Images drawn at once.
        every_n_steps: Optimizer steps between grids; one is always drawn before the first step and after the last.
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
    ) -> None:
        self.prompts = [prompts] if isinstance(prompts, str) else prompts
        if prompts_file is not None:
            if self.prompts or not Path(prompts_file).is_file():
                raise InputError(f"samples.prompts_file {prompts_file} must be a file, given without samples.prompts")
            lines = read_text(Path(prompts_file)).splitlines()
            self.prompts = [line.strip() for line in lines if line.strip()]
        for name, value in {"num_images": num_images, "every_n_steps": every_n_steps}.items():
            if value < 1:
                raise InputError(f"samples.{name} is {value}, must be 1 or more")
        self.settings = (negative_prompt, steps, guidance_scale, sampler)
        check_request(Request("", seed, *self.settings))
        self.seeds = range(seed, seed + num_images)
        self.batch_size = batch_size
        self.every_n_steps = every_n_steps

    def requests(self, prompts: list[str]) -> list[Request]:
        """Every prompt with every seed."""
        return [Request(prompt, seed, *self.settings) for prompt in prompts for seed in self.seeds]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows the training images."""
        if not trainer.is_global_zero:
            return
        data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
        halves = [half for concept in data.dataset.concepts for half in (concept.instances, concept.classes) if half]
        shown = [image for half in halves for image in half[: max(1, CONTACT_SHEET // len(halves))]]
        images = [crop(read_image(image.path), min(128, data.resolution_px), View()) for image in shown]
        show(trainer, "training images", tile(images, columns=8), output_folder(trainer) / "training_pictures.png")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draws the untuned model, or what a stop did not leave the time for."""
        if trainer.global_step == 0 or (self._due(trainer) and not self._file(trainer).is_file()):
            self._grid(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draws a grid every so many steps and at the last one, but not before the state of a run that is stopped."""
        stopped = trainer.should_stop and trainer.global_step != trainer.max_steps
        if self._due(trainer) and stepped(trainer, batch_idx) and not stopped:
            self._grid(trainer, pl_module)

    def _due(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps

    def _file(self, trainer: pl.Trainer) -> Path:
        return output_folder(trainer) / SAMPLES / f"step-{trainer.global_step:06d}.png"

    def _grid(self, trainer: pl.Trainer, module: DreamBooth) -> None:
        if not trainer.is_global_zero:
            return
        data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
        by_concept = [prompt for concept in data.concepts for prompt in (concept.instance_prompt, concept.class_prompt)]
        prompts = self.prompts or list(dict.fromkeys(prompt for prompt in by_concept if prompt))
        with trainer.precision_plugin.forward_context():
            drawn = [
                to_pil_image(image)
                for batch in batches(self.requests(prompts), self.batch_size)
                for image in as_bytes(module.draw(batch, data.resolution_px)).cpu()
            ]
        grid = tile(drawn, columns=len(self.seeds), labels=prompts)
        show(trainer, "samples", grid, self._file(trainer))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Learns from the first process where all of them write."""
        self.folder = Path(trainer.strategy.broadcast(output_folder(trainer)))

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Tensor, batch: list[Request], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Writes each image with all that made it."""
        data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
        first = first_of(data.request_batches, batch_idx)
        for place, (image, request) in enumerate(zip(as_bytes(outputs).cpu(), batch, strict=True), start=first):
            about = request._asdict() | {"model": pl_module.pretrained}
            write_png(to_pil_image(image), self.folder / image_name(place, request), about)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Tiles all images, a row per prompt."""
        barrier()
        if trainer.is_global_zero:
            requests = trainer.datamodule.requests  # type: ignore[attr-defined]
            drawn = [read_image(self.folder / image_name(i, each)) for i, each in enumerate(requests)]
            grid = tile(drawn, columns=len(self.seeds), labels=self.prompts or ())
            write_png(grid, self.folder / "grid.png", {})


def image_name(place: int, request: Request) -> str:
    """File name of the image that `predict` draws for the request at that place."""
    words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:60]
    return f"{place:04d}-{words}-seed{request.seed}.png"
