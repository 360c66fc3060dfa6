"""Masks of images: how much each place of their latents counts in the loss."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from lightning_dreambooth.data.concepts import TrainingImage
from lightning_dreambooth.data.images import View, crop_box, read_image, read_opacity
from lightning_dreambooth.errors import InputError


class Masks:
    """The weights of all views of images, kept in memory.

    Args:
        images: The images.
        views: The views that training draws from.
        size_of: Width and height of an image's latents.
        outside: Weight of what lies outside of a mask, 0 ... 1; inside it is 1.

    Raises:
        InputError: if a mask cannot be read, is empty, or has another shape than its image.
    """

    def __init__(
        self,
        images: Iterable[TrainingImage],
        views: Sequence[View],
        size_of: Callable[[Path], tuple[int, int]],
        outside: float,
    ) -> None:
        self._weights = {
            (image.path, view): outside + (1 - outside) * inside
            for image in images
            for view, inside in zip(views, _insides(image, views, size_of(image.path)), strict=True)
        }  # fmt: skip

    def of(self, path: Path, view: View) -> Float[Tensor, "1 h w"]:
        """The weights of a view of an instance image."""
        return self._weights[path, view]


def _insides(image: TrainingImage, views: Sequence[View], size: tuple[int, int]) -> list[Float[Tensor, "1 h w"]]:
    mask = read_mask(image)
    return [_shrunk(mask, view, size) for view in views]


def read_mask(image: TrainingImage) -> Image.Image:
    """The mask beside an image, else its opacity: 255 where it is trained on.

    Raises:
        InputError: if it cannot be read, is empty, or has another shape than its image.
    """
    mask = read_opacity(image.path) if image.mask is None else _read_beside(image)
    if not mask.getbbox():
        raise InputError(f"the mask of {image.path} leaves nothing to train on; mend or remove it")
    return mask


def _read_beside(image: TrainingImage) -> Image.Image:
    assert image.mask
    mask, size = read_image(image.mask).convert("L"), read_image(image.path).size
    if abs(mask.width * size[1] - mask.height * size[0]) > max(*mask.size, *size):  # more than a pixel of rounding
        raise InputError(f"{image.mask} is {mask.width} x {mask.height} px, must have the shape of {image.path}")
    return mask


def _shrunk(mask: Image.Image, view: View, size: tuple[int, int]) -> Float[Tensor, "1 h w"]:
    """A view of a mask => the share of each latent's pixels that lies inside."""
    small = mask.resize(size, Image.Resampling.BOX, crop_box(*mask.size, view, size))
    return pil_to_tensor(ImageOps.mirror(small) if view.flip else small).float() / 255
