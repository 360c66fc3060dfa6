"""What happens beside the steps: what is drawn and what is kept."""

import re
import shutil
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from lightning_dreambooth.data import DreamBoothData
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.export import export
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.pictures import View, crop, read_picture, tile, write_png
from lightning_dreambooth.sampling import Request, Sampler, batches, check_request
from lightning_dreambooth.watch import stepped

STATE = "state.ckpt"
EXPORTS = "exports"
SAMPLES = "samples"
CONTACT_SHEET = 64  # training pictures shown at most


def run_folder(trainer: pl.Trainer) -> Path:
    """Where everything of a run lies: `checkpoints/<name>`."""
    return Path(trainer.default_root_dir)


def show(trainer: pl.Trainer, name: str, picture: Image.Image, path: Path) -> None:
    """Writes a picture beside the run and into its TensorBoard log."""
    write_png(picture, path, {"step": trainer.global_step})
    if isinstance(trainer.logger, pl.loggers.TensorBoardLogger):
        trainer.logger.experiment.add_image(name, pil_to_tensor(picture), trainer.global_step)


class Samples(Callback):
    """Draws pictures: grids while training, single files in `predict`.

    Args:
        prompts: What is drawn; null draws the instance and class prompts of the concepts.
        prompts_file: Text file with one prompt per line, in place of prompts.
        negative_prompt: What guidance leads away from.
        num_images: Pictures per prompt.
        seed: Seed of the first picture of each prompt; the next ones count up, so that grids compare across steps.
        steps: Sampling steps.
        guidance_scale: Classifier-free guidance scale w (arXiv:2207.12598); 1 switches it off.
        sampler: ddim, dpm++ (DPM-Solver++ 2M) or euler.
        batch_size: Pictures drawn at once.
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
            lines = Path(prompts_file).read_text(encoding="utf-8").splitlines()
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
        """Shows the training pictures."""
        data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
        halves = [half for concept in data.dataset.concepts for half in (concept.instances, concept.classes) if half]
        shown = [picture for half in halves for picture in half[: max(1, CONTACT_SHEET // len(halves))]]
        pictures = [crop(read_picture(picture.path), min(128, data.resolution_px), View()) for picture in shown]
        show(trainer, "training pictures", tile(pictures, columns=8), run_folder(trainer) / "training_pictures.png")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draws the untuned model."""
        if trainer.global_step == 0:
            self._grid(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Draws a grid every so many steps and at the last one."""
        due = trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps
        if due and stepped(trainer, batch_idx):
            self._grid(trainer, pl_module)

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
                for image in module.draw(batch, data.resolution_px).cpu()
            ]
        grid = tile(drawn, columns=len(self.seeds), labels=prompts)
        show(trainer, "samples", grid, run_folder(trainer) / SAMPLES / f"step-{trainer.global_step:06d}.png")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Refuses to draw nothing."""
        self.drawn: list[Image.Image] = []

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Tensor, batch: list[Request], batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Writes each picture with all that made it."""
        for image, request in zip(outputs.float().cpu(), batch, strict=True):
            picture = to_pil_image(image)
            words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:60]
            about = request._asdict() | {"model": pl_module.pretrained}
            write_png(picture, run_folder(trainer) / f"{len(self.drawn):04d}-{words}-seed{request.seed}.png", about)
            self.drawn.append(picture)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Tiles all pictures, a row per prompt."""
        grid = tile(self.drawn, columns=len(self.seeds), labels=self.prompts or ())
        write_png(grid, run_folder(trainer) / "grid.png", {})


class Keep(Callback):
    """Keeps one resumable state and the newest exports.

    Args:
        every_n_steps: Optimizer steps between saves; the last step is always saved.
        keep: How many exports stay; older ones are removed after a newer one is complete.
        dtype: Weights of the exports.
    """

    def __init__(
        self, every_n_steps: int = 200, keep: int = 2, dtype: Literal["float16", "float32"] = "float16"
    ) -> None:
        for name, value in {"every_n_steps": every_n_steps, "keep": keep}.items():
            if value < 1:
                raise InputError(f"checkpoint.{name} is {value}, must be 1 or more")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.dtype = dtype
        self.saved_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """What is resumed has been saved."""
        self.saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves when it is time."""
        due = trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps
        if due and stepped(trainer, batch_idx):
            self.save(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Saves a run that was ended early, by `trainer.max_time` or another callback."""
        if trainer.global_step > self.saved_step:
            self.save(trainer, pl_module)

    def save(self, trainer: pl.Trainer, pl_module: DreamBooth) -> None:
        """Writes state and export, then removes exports that are no longer kept."""
        folder = run_folder(trainer)
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(folder / STATE)
        if trainer.is_global_zero:
            exports = folder / EXPORTS
            data: DreamBoothData = trainer.datamodule  # type: ignore[attr-defined]
            export(pl_module, data, exports / f"step-{trainer.global_step:06d}", getattr(torch, self.dtype))
            prune(exports, self.keep)


def prune(exports: Path, keep: int) -> None:
    """Removes all but the newest exports."""
    for old in sorted(exports.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
