"""DreamBooth for Stable Diffusion on PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lightning_dreambooth.datamodule import DreamBoothData as DreamBoothData
    from lightning_dreambooth.diffusion.requests import Request as Request
    from lightning_dreambooth.diffusion.requests import SamplingSettings as SamplingSettings
    from lightning_dreambooth.diffusion.sampling import sample as sample
    from lightning_dreambooth.models.model_files import ModelFiles as ModelFiles
    from lightning_dreambooth.models.stable_diffusion import StableDiffusion as StableDiffusion
    from lightning_dreambooth.module import DreamBooth as DreamBooth

# Imported on first use, so that `import lightning_dreambooth` is instant.
_PUBLIC = {
    "DreamBooth": "module",
    "DreamBoothData": "datamodule",
    "ModelFiles": "models.model_files",
    "Request": "diffusion.requests",
    "SamplingSettings": "diffusion.requests",
    "StableDiffusion": "models.stable_diffusion",
    "sample": "diffusion.sampling",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
