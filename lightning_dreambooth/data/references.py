"""What a model draws for given requests: drawn once, kept by content, shared by all who ask for the same."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_dreambooth.data.image_store import ImageJob, fill
from lightning_dreambooth.diffusion.sampling import Request
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


def path_of(request: Request, resolution_px: int, model: str, precision: str, folder: Path) -> Path:
    """Where the image lies that a model, named by its fingerprint, draws for a request."""
    about = f"{tuple(request)} {resolution_px} {precision}"
    return folder / model / f"{hashlib.sha256(about.encode()).hexdigest()[:32]}.png"


def fill_references(
    requests: Sequence[Request], resolution_px: int, fingerprint: str, precision: str, folder: Path,
    model: Callable[[], StableDiffusion], batch_size: int, title: str = "images of the untuned model",
) -> list[Path]:  # fmt: skip
    """Draws what is not there yet; returns the image of each request."""
    paths = [path_of(request, resolution_px, fingerprint, precision, folder) for request in requests]

    def plan() -> list[ImageJob]:
        pairs = zip(paths, requests, strict=True)
        return [ImageJob(path, request) for path, request in pairs if not path.is_file()]

    fill(folder / fingerprint, plan, title, {"model": fingerprint}, resolution_px, model, batch_size)
    return paths
