"""Stores of images that are drawn once, by all processes together; each batch is written when it is drawn."""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from lightning_dreambooth.data.images import write_png
from lightning_dreambooth.diffusion.requests import ImageJob, Request, batches
from lightning_dreambooth.diffusion.sampling import as_bytes, sample
from lightning_dreambooth.distributed import any_rank, exclusive_folder, of_first_rank, rank, shard
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.sizes import Size


class ImageWriter(NamedTuple):
    """Draws images with one model and writes each with everything that decides it.

    Attributes:
        load: Returns the model; called only if there is something to draw.
        model: Fingerprint of the model.
        size: Of the images.
        batch_size: Images drawn at once.
    """

    load: Callable[[], StableDiffusion]
    model: str
    size: Size
    batch_size: int

    def write(self, jobs: Sequence[ImageJob], missing: Collection[ImageJob], title: str) -> None:
        """Draws and writes the missing images of a list, all processes together."""
        # Batches of the whole list, because the last bit of an image may depend on its batch: so it is the same on any
        # number of processes, and after a stop amid a batch.
        wanted = {job.number for job in missing}
        lacking = [batch for batch in batches(jobs, self.batch_size) if any(job.number in wanted for job in batch)]
        local = shard(lacking)
        count = sum(job.number in wanted for batch in local for job in batch)
        with tqdm(total=count, desc=title, unit="image", disable=rank() > 0 or not local) as progress:
            for batch in local:
                images = sample(self.load(), [job.request for job in batch], self.size)
                for job, image in zip(batch, as_bytes(images).cpu(), strict=True):
                    if job.number in wanted:
                        write_job(job, to_pil_image(image), self.model)
                        progress.update()


def write_job(job: ImageJob, image: Image.Image, model: str) -> None:
    """Writes the image of a job to its path, with its request and its model.

    Raises:
        ValueError: if the job has no path.
    """
    if job.path is None:
        raise ValueError(f"image {job.number} has no path")
    write_png(image, job.path, job.request.as_dict() | {"model": model})


def fill_folder(
    folder: Path, jobs: Callable[[], list[ImageJob]], missing: Callable[[], list[ImageJob]], writer: ImageWriter,
    title: str, announce: Callable[[list[ImageJob]], None] = lambda jobs: None,
) -> None:  # fmt: skip
    """Draws the missing images of a folder while no other run writes there.

    Args:
        folder: The folder.
        jobs: Lists the jobs of all images, drawn or not.
        missing: Lists those whose images are missing.
        writer: Draws and writes them.
        title: Title of the progress bar.
        announce: Called with the missing ones by the first process, before the first image is drawn.

    Raises:
        InputError: if other processes write to another disk.
    """
    if not any_rank(bool(missing())):
        return
    with exclusive_folder(folder):
        every, lacking = of_first_rank((jobs(), missing()))  # another run may have drawn some meanwhile
        if lacking and rank() == 0:
            announce(lacking)
        writer.write(every, lacking, title)
    if absent := missing():
        raise InputError(f"{absent[0].path} was drawn on another node; name a folder that all nodes share")


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

    def fill(self, requests: Sequence[Request], load: Callable[[], StableDiffusion], title: str) -> list[Path]:
        """Draws the missing images; returns the path of each request's image.

        Images that another list of requests has drawn stay as they are, so that a run finds its own again.
        """
        writer = ImageWriter(load, self.model, self.resolution_px, self.batch_size)
        listed = (lambda: self._jobs(requests)), (lambda: self.missing(requests))
        fill_folder(self.folder / self.model, *listed, writer, title)
        return [self.path(request) for request in requests]

    def missing(self, requests: Sequence[Request]) -> list[ImageJob]:
        """Jobs of the images that are not drawn yet; writes nothing."""
        return [job for job in self._jobs(requests) if job.path and not job.path.is_file()]

    def _jobs(self, requests: Sequence[Request]) -> list[ImageJob]:
        return [ImageJob(number, request, self.path(request)) for number, request in enumerate(requests)]
