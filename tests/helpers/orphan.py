"""A process of a killed run that still writes, as the processes of the next run see it."""

import itertools
from pathlib import Path

from lightning_dreambooth.data.image_store import ImageWriter, fill_folder
from lightning_dreambooth.diffusion.requests import ImageJob, SamplingSettings, requests_for
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


def fill_beside_it(folder: Path, rank: int) -> None:
    """Draws five images, of which the orphan writes one between the looks of the first and of the second process."""
    settings = SamplingSettings("", 2, 1.0, "ddim")
    requests = requests_for(["a photo of a girl"], range(5), settings)
    jobs = [ImageJob(number, request, folder / f"{number}.png") for number, request in enumerate(requests)]
    looks = itertools.chain([0, 0] if rank else [], itertools.repeat(None))  # the orphan writes 0 after rank 0 looked

    def missing() -> list[ImageJob]:
        written_meanwhile = next(looks)
        return [job for job in jobs if job.number != written_meanwhile and not job.path.is_file()]

    model = StableDiffusion.load(ModelFiles(str(folder / "tiny")))
    fill_folder(folder, lambda: jobs, missing, ImageWriter(lambda: model, "model", 32, 1), "")
