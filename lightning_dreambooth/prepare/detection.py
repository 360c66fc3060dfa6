"""Looks for faces on pages and photos of any size, with one or more detectors."""

from collections.abc import Callable, Iterator, Sequence
from math import cos, radians, sin
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from PIL import Image, ImageOps

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.prepare import anime_faces, mtcnn
from lightning_dreambooth.prepare.anime_faces import AnimeFaces
from lightning_dreambooth.prepare.boxes import Box, Face, around, merge
from lightning_dreambooth.prepare.extras import installed
from lightning_dreambooth.prepare.mtcnn import Mtcnn

STRIP = 2.0  # images taller than so many widths are strips of pages
STRIP_WIDTH_PX = 640  # width of the copy of a strip
MAX_SIDE_PX = 1280  # longer side of the copy of any other image
OVERLAP_PX = 160  # of the square tiles of a strip of pages: a smaller face is whole in one of them
TILT_DEGREES = 15.0  # of copies that are looked at as well, if asked


@runtime_checkable
class Detector(Protocol):
    """Finds faces on an image."""

    name: str

    def find(self, image: Image.Image) -> list[Face]:
        """The faces on an RGB image."""


def load_detectors(names: Sequence[str] | None) -> list[Detector]:
    """The detectors of these names; None: those that are installed.

    Raises:
        InputError: if one is not installed or not known, or none is installed.
    """
    known: dict[str, Callable[[], Detector]] = {mtcnn.NAME: _mtcnn, anime_faces.NAME: AnimeFaces}
    if names is None:
        names = [name for name in known if installed(name)] or [mtcnn.NAME]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"--detectors has {', '.join(unknown)}, known are {', '.join(known)}")
    return [known[name]() for name in dict.fromkeys(names)]


def _mtcnn() -> Mtcnn:
    return Mtcnn(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def copy_scale(size: tuple[int, int]) -> float:
    """Size of the copy in which faces are looked for, relative to the image; never larger than it."""
    wanted = STRIP_WIDTH_PX / size[0] if is_strip(size) else MAX_SIDE_PX / max(size)
    return min(1.0, wanted)


def is_strip(size: tuple[int, int]) -> bool:
    """Whether an image of this width and height is a strip of pages."""
    return size[1] > STRIP * size[0]


def find_faces(image: Image.Image, detectors: Sequence[Detector], thorough: bool) -> list[Face]:
    """The faces on an RGB image, in its own px, each once.

    Args:
        image: The image.
        detectors: Who looks for them.
        thorough: Whether they also look at tilted copies, which takes twice as long.
    """
    scale = copy_scale(image.size)
    small = image.resize([max(1, round(scale * side)) for side in image.size], Image.Resampling.LANCZOS)
    found = []
    for top in tile_tops(small.size):
        bottom = top + small.width if is_strip(small.size) else small.height
        tile = small.crop((0, top, small.width, min(bottom, small.height)))
        for view in views(tile, thorough):
            for detector in detectors:
                for face in detector.find(view.image):
                    found.append(face._replace(box=view.back(face.box).moved(0, top).scaled(1 / scale)))
    return merge(found)


def tile_tops(size: tuple[int, int]) -> list[int]:
    """Where the square tiles of a strip begin; a single one for any other image."""
    width, height = size
    if not is_strip(size):
        return [0]
    tops = range(0, height - width, width - min(OVERLAP_PX, width // 4))
    return [*tops, height - width]


class View(NamedTuple):
    """A copy of a tile, and how a box on it becomes one on the tile."""

    image: Image.Image
    back: Callable[[Box], Box]


def views(tile: Image.Image, thorough: bool) -> Iterator[View]:
    """The tile and its mirror image, which a detector may see otherwise; tilted ones if asked."""
    width = tile.width
    yield View(tile, lambda box: box)
    yield View(ImageOps.mirror(tile), lambda box: box._replace(left=width - box.right, right=width - box.left))
    for degrees in (-TILT_DEGREES, TILT_DEGREES) if thorough else ():
        yield View(tile.rotate(degrees, Image.Resampling.BICUBIC), _turned(tile.size, degrees))


def _turned(size: tuple[int, int], degrees: float) -> Callable[[Box], Box]:
    """Boxes on an image that was turned counter-clockwise => boxes of the same sides where they were before."""
    middle_x, middle_y, angle = size[0] / 2, size[1] / 2, radians(degrees)

    def back(box: Box) -> Box:
        x, y = (box.left + box.right) / 2 - middle_x, (box.top + box.bottom) / 2 - middle_y
        return around(
            middle_x + x * cos(angle) - y * sin(angle), middle_y + x * sin(angle) + y * cos(angle), box.width,
            box.height,
        )  # fmt: skip

    return back
