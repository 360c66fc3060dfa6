"""Image files: reading, cropping, comparing and writing. Plain PIL, no torch."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from lightning_dreambooth.data.colours import raw_mode, to_opacity, to_srgb
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import replaced
from lightning_dreambooth.inputs import check_regular
from lightning_dreambooth.sizes import Size, sides

# Raise it when `read_image` or `crop` gives other pixels for a file: encoded images then no longer fit.
READER_VERSION = 1
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif",
}  # fmt: skip
FORMATS = ["PNG", "JPEG", "WEBP", "AVIF", "BMP", "TIFF", "GIF"]  # the only decoders used, whatever the file name
HEIC_SUFFIXES = {".heic", ".heif"}  # photos of iPhones; their decoder is an extra
if find_spec("pillow_heif"):
    import pillow_heif

    pillow_heif.register_heif_opener()
    SUFFIXES |= HEIC_SUFFIXES
    FORMATS.append("HEIF")
MAX_SIDE = 8192
MAX_PIXELS = MAX_SIDE**2  # a quarter of a gigabyte once decoded
NEARLY_EQUAL = 8.0  # mean difference of 16 x 16 thumbnails, of 255; recompressed or slightly cropped copies stay below
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class View(NamedTuple):
    """A part of an image: mirrored or not, and its place (0 left or top ... 1 right or bottom)."""

    flip: bool = False
    x: float = 0.5
    y: float = 0.5


def read_image(path: Path) -> Image.Image:
    """A file => an upright RGB image in sRGB: the first frame, turned by EXIF, its ICC profile applied, on white.

    Raises:
        InputError: if it is broken, not a regular file, or has more than MAX_PIXELS pixels, which is checked before
            decoding.
    """
    return _read(path, to_srgb)


def read_opacity(path: Path) -> Image.Image:
    """A file => how opaque each pixel of its upright first frame is, 0 ... 255.

    Raises:
        InputError: as `read_image`.
    """
    return _read(path, to_opacity)


def _read(path: Path, convert: Callable[[Image.Image, str], Image.Image]) -> Image.Image:
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's advice on sizes and odd metadata
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height <= MAX_PIXELS:
                    packed = raw_mode(file)
                    file.load()
                    image = convert(_upright(file), packed)
                    image.info.clear()  # else a copy that is saved carries the profile of other pixels
                    return image
        size = f"{file.width} x {file.height} px, more than {MAX_PIXELS:,} in all"
    except Exception as error:  # decoders of broken or hostile files may raise anything
        raise InputError(f"{path} cannot be read as an image ({error}); repair or remove it") from error
    raise InputError(f"{path} is {size}; make it smaller")


def _upright(file: Image.Image) -> Image.Image:
    """The image turned by its orientation. `ImageOps.exif_transpose` also rewrites EXIF, which fails for odd EXIF."""
    try:
        orientation = file.getexif().get(Base.Orientation)
    except Exception:  # EXIF that cannot be parsed; the pixels can
        return file
    return file.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else file


def near_identical(images: Sequence[Image.Image]) -> list[tuple[int, int]]:
    """Pairs of indices of images that are nearly the same."""
    small = [image.resize((16, 16), Image.Resampling.BOX) for image in images]
    pixels = np.array([np.asarray(image, dtype=np.float32).ravel() for image in small])
    distances = [np.abs(pixels[i + 1 :] - pixels[i]).mean(1) for i in range(len(pixels))]
    return [(i, i + 1 + int(j)) for i, row in enumerate(distances) for j in np.flatnonzero(row < NEARLY_EQUAL)]


def crop_box(width: int, height: int, view: View, size: Size = 1) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in px of the largest rectangle of a size's shape at the view's place."""
    across, down = sides(size)
    scale = min(width / across, height / down)
    inner_width, inner_height = round(scale * across), round(scale * down)
    left, top = round((width - inner_width) * view.x), round((height - inner_height) * view.y)
    return (left, top, left + inner_width, top + inner_height)


def crop(image: Image.Image, size: Size, view: View) -> Image.Image:
    """The largest rectangle of a size's shape at the view's place, resized to it; mirrored if the view is."""
    box = crop_box(*image.size, view, size)
    part = image.resize(sides(size), Image.Resampling.LANCZOS, box)
    return ImageOps.mirror(part) if view.flip else part


def write_png(image: Image.Image, path: Path, chunks: Mapping[str, object]) -> None:
    """Writes a PNG atomically; viewers show the text chunks."""
    info = PngInfo()
    for key, value in chunks.items():
        info.add_itxt(key, str(value))
    with replaced(path) as beside:
        image.save(beside, format="PNG", pnginfo=info)
