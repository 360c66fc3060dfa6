"""Stores of images that are drawn once, by all processes together; each batch is written when it is drawn."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from lightning_dreambooth.data.images import write_png
from lightning_dreambooth.diffusion.requests import ImageJob, Request, batches
from lightning_dreambooth.diffusion.sampling import as_bytes, sample
from lightning_dreambooth.distributed import any_rank, barrier, exclusive_folder, rank, shard
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


class ImageWriter(NamedTuple):
    """Draws images with one model and writes each with everything that decides it.

    Attributes:
        load: Returns the model; called only if there is something to draw.
        model: Fingerprint of the model.
        resolution_px: Side of the images.
        batch_size: Images drawn at once.
    """

    load: Callable[[], StableDiffusion]
    model: str
    resolution_px: int
    batch_size: int

    def write(self, jobs: Sequence[ImageJob], title: str) -> None:
        """Draws and writes images, all processes together."""
        # Whole batches, so that an image is the same to the last bit on any number of processes.
        local = shard(batches(jobs, self.batch_size))
        count = sum(len(batch) for batch in local)
        with tqdm(total=count, desc=title, unit="image", disable=rank() > 0 or not local) as progress:
            for batch in local:
                images = sample(self.load(), [job.request for job in batch], self.resolution_px)
                for job, image in zip(batch, as_bytes(images).cpu(), strict=True):
                    write_job(job, to_pil_image(image), self.model)
                progress.update(len(batch))


def write_job(job: ImageJob, image: Image.Image, model: str) -> None:
    """Writes the image of a job to its path, with its request and its model.

    Raises:
        ValueError: if the job has no path.
    """
    if job.path is None:
        raise ValueError(f"image {job.number} has no path")
    write_png(image, job.path, job.request.as_dict() | {"model": model})


def fill_folder(
    folder: Path, missing: Callable[[], list[ImageJob]], writer: ImageWriter, title: str,
    announce: Callable[[list[ImageJob]], None] = lambda jobs: None,
) -> None:  # fmt: skip
    """Draws the missing images of a folder while no other run writes there.

    Args:
        folder: The folder.
        missing: Lists the jobs whose images are missing.
        writer: Draws and writes them.
        title: Title of the progress bar.
        announce: Called with the jobs by the first process, before the first image is drawn.

    Raises:
        InputError: if other processes write to another disk.
    """
    jobs = missing()
    if not any_rank(bool(jobs)):
        return
    with exclusive_folder(folder):
        jobs = missing()  # another run may have drawn them meanwhile
        barrier()
        if jobs and rank() == 0:
            announce(jobs)
        writer.write(jobs, title)
    if absent := [job.path for job in jobs if job.path and not job.path.is_file()]:
        raise InputError(f"{absent[0]} was drawn on another node; name a folder that all nodes share")


@dataclass(frozen=True)
class ImageStore:
    """Images of one model by content: equal requests share one file.

    Args:
        folder: Folder of the store; each model has a folder in it.
        model: Fingerprint of the model.
        resolution_px: Side of the images.
        precision: The trainer's precision, because bf16 and fp32 give different bits.
        batch_size: Images drawn at once.
    """

    folder: Path
    model: str
    resolution_px: int
    precision: str
    batch_size: int

    def path(self, request: Request) -> Path:
        """Path of the image of a request, drawn or not."""
        content = f"{request.as_dict()} {self.resolution_px} {self.precision}"
        return self.folder / self.model / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.png"

    def missing(self, requests: Sequence[Request]) -> list[ImageJob]:
        """Jobs of the requests whose images are not drawn yet."""
        jobs = [ImageJob(number, request, self.path(request)) for number, request in enumerate(requests)]
        return [job for job in jobs if job.path and not job.path.is_file()]

    def fill(self, requests: Sequence[Request], load: Callable[[], StableDiffusion], title: str) -> list[Path]:
        """Draws the missing images; returns the path of each request's image."""
        writer = ImageWriter(load, self.model, self.resolution_px, self.batch_size)
        fill_folder(self.folder / self.model, lambda: self.missing(requests), writer, title)
        return [self.path(request) for request in requests]
