"""Images that are drawn once and kept: shared out among processes, each written when its batch is done."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from lightning_dreambooth.data.images import write_png
from lightning_dreambooth.diffusion.sampling import Request, as_bytes, batches, sample
from lightning_dreambooth.distributed import any_rank, barrier, exclusive_folder, rank, shard
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


class ImageJob(NamedTuple):
    """An image that is not there yet: where it will lie, and what decides it."""

    path: Path
    request: Request


def fill(
    folder: Path, plan: Callable[[], list[ImageJob]], title: str, made_by: Mapping[str, object], resolution_px: int,
    model: Callable[[], StableDiffusion], batch_size: int, note: Callable[[list[ImageJob]], None] = lambda wanted: None,
) -> None:  # fmt: skip
    """Draws what a folder lacks, all processes together and no other run beside them; `note` hears of it first.

    Raises:
        InputError: if other processes write to another disk.
    """
    wanted = plan()
    if not any_rank(bool(wanted)):
        return
    with exclusive_folder(folder):
        wanted = plan()  # another run may have drawn them meanwhile
        barrier()
        if wanted and rank() == 0:
            note(wanted)
        draw(wanted, title, made_by, resolution_px, model, batch_size)
    if absent := [path for path, _ in wanted if not path.is_file()]:
        raise InputError(f"{absent[0]} was drawn on another node; name a folder that all nodes share")


def draw(
    wanted: Sequence[ImageJob], title: str, made_by: Mapping[str, object], resolution_px: int,
    model: Callable[[], StableDiffusion], batch_size: int,
) -> None:  # fmt: skip
    """Draws images, all processes together; asks for the model only if there are any."""
    paths = iter([path for path, _ in wanted])
    cut = [([next(paths) for _ in part], part) for part in batches([request for _, request in wanted], batch_size)]
    mine = shard(cut)  # whole batches, so that an image is the same to the last bit however many processes draw
    count = sum(len(part) for _, part in mine)
    with tqdm(total=count, desc=title, unit="image", disable=rank() > 0 or not mine) as progress:
        for files, requests in mine:
            for file, request, image in zip(
                files, requests, as_bytes(sample(model(), requests, resolution_px)).cpu(), strict=True
            ):
                write_png(to_pil_image(image), file, request._asdict() | dict(made_by))
            progress.update(len(requests))
