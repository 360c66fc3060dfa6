"""Masks of images: how much each place of their latents counts in the loss."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from lightning_dreambooth.data.concepts import TrainingImage
from lightning_dreambooth.data.images import View, read_image, read_opacity, square_box
from lightning_dreambooth.errors import InputError


class Masks:
    """The weights of all views of images, kept in memory.

    Args:
        images: The images.
        views: The views that training draws from.
        side: Height and width of latents.
        outside: Weight of what lies outside of a mask, 0 ... 1; inside it is 1.

    Raises:
        InputError: if a mask cannot be read, has another shape than its image, or leaves nothing of a view.
    """

    def __init__(self, images: Iterable[TrainingImage], views: Sequence[View], side: int, outside: float) -> None:
        self.side = side
        self._weights = {
            (image.path, view): outside + (1 - outside) * inside
            for image in images for view, inside in zip(views, _insides(image, views, side), strict=True)
        }  # fmt: skip

    def of(self, half: str, path: Path, view: View) -> Float[Tensor, "1 side side"]:
        """The weights of a view in an instance row; class rows are not masked, as the base is kept as a whole."""
        return self._weights[path, view] if half == "instance" else torch.ones(1, self.side, self.side)


def _insides(image: TrainingImage, views: Sequence[View], side: int) -> list[Float[Tensor, "1 side side"]]:
    mask = read_mask(image)
    insides = [_shrunk(mask, view, side) for view in views]
    if not all(inside.any() for inside in insides):
        raise InputError(f"the mask of {image.path} leaves nothing to train on; mend or remove it")
    return insides


def read_mask(image: TrainingImage) -> Image.Image:
    """The mask beside an image, else its opacity: 255 where it is trained on.

    Raises:
        InputError: if it cannot be read, or the shape of a mask is another one than its image's.
    """
    if image.mask is None:
        return read_opacity(image.path)
    mask, size = read_image(image.mask).convert("L"), read_image(image.path).size
    if abs(mask.width * size[1] - mask.height * size[0]) > max(*mask.size, *size):  # more than a pixel of rounding
        raise InputError(f"{image.mask} is {mask.width} x {mask.height} px, must have the shape of {image.path}")
    return mask


def _shrunk(mask: Image.Image, view: View, side: int) -> Float[Tensor, "1 side side"]:
    """A view of a mask => the share of each latent's pixels that lies inside."""
    square = mask.resize((side, side), Image.Resampling.BOX, square_box(*mask.size, view))
    return pil_to_tensor(ImageOps.mirror(square) if view.flip else square).float() / 255
