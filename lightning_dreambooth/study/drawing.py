"""Draws what a study shows with an exported model, each image once, kept by content."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch

from lightning_dreambooth.data.references import fill_references, path_of
from lightning_dreambooth.diffusion.sampling import Request
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


class RenderSettings(NamedTuple):
    """How images are drawn, besides what a request says, and where they are kept."""

    resolution_px: int
    precision: str
    accelerator: str
    batch_size: int
    folder: str


def draw(model: Path, requests: Sequence[Request], brush: RenderSettings) -> None:
    """Draws what is not there yet."""
    trainer = pl.Trainer(
        accelerator=brush.accelerator, devices=1, precision=brush.precision, logger=False,  # type: ignore[arg-type]
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    files = ModelFiles(str(model), None, None, None)

    @cache
    def load() -> StableDiffusion:
        return StableDiffusion.load(files.folder, files.vae_folder).to(trainer.strategy.root_device)

    with trainer.precision_plugin.forward_context():
        fill_references(
            requests, brush.resolution_px, files.fingerprint, brush.precision, Path(brush.folder), load,
            brush.batch_size, title="images of the figures",
        )  # fmt: skip
    load.cache_clear()
    torch.cuda.empty_cache()  # fits in processes of their own follow


def images_of(model: Path, requests: Sequence[Request], brush: RenderSettings) -> list[Path]:
    """Where the images of an exported model lie."""
    fingerprint = ModelFiles(str(model), None, None, None).fingerprint
    return [path_of(each, brush.resolution_px, fingerprint, brush.precision, Path(brush.folder)) for each in requests]
