"""Image files: listing, reading, cropping, comparing and writing. Plain PIL, no torch."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import replaced

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # the only decoders used, whatever the file name
READER_VERSION = (
    1  # raise it when `read_image` or `crop` gives other pixels for a file: encoded images then no longer fit
)
MAX_PIXELS = 8192 * 8192  # a quarter of a gigabyte once decoded
NEARLY_EQUAL = 8.0  # mean difference of 16 x 16 thumbnails, of 255; recompressed or slightly cropped copies stay below


class View(NamedTuple):
    """A square of an image: mirrored or not, and its place (0 left or top ... 1 right or bottom)."""

    flip: bool = False
    x: float = 0.5
    y: float = 0.5


def list_images(folder: Path) -> tuple[list[Path], int]:
    """The images directly in a folder, sorted by name, and how many other files there are, captions not counted.

    Raises:
        InputError: if a file is a link out of the folder: training images must lie in it.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() or path.is_symlink())
    for path in files:
        if path.is_symlink() and not _stays_in(folder, path):
            raise InputError(f"{path} is a link out of its folder, to {path.readlink()}; put a copy there")
    images = [path for path in files if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    captions = [path for path in files if path.suffix == ".txt"]
    return images, len(files) - len(images) - len(captions)


def _stays_in(folder: Path, link: Path) -> bool:
    try:
        return folder.resolve() in link.resolve(strict=True).parents
    except (OSError, RuntimeError):  # a broken link, or a link to itself
        return False


def read_text(path: Path) -> str:
    """The content of a text file in UTF-8.

    Raises:
        InputError: if it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 ({error}); save it as UTF-8") from error


def read_caption(image: Path, default: str) -> str:
    """The caption in `name.txt` or `name.png.txt` beside an image, else the default."""
    for path in (image.with_suffix(".txt"), image.with_name(image.name + ".txt")):
        if path.is_file():
            return " ".join(read_text(path).split())
    return default


def read_image(path: Path) -> Image.Image:
    """A file => an upright RGB image: EXIF rotation applied, transparency on white, palettes and 16 bit converted.

    Raises:
        InputError: if it is broken, or has more than MAX_PIXELS pixels, which is checked before decoding.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's advice on sizes and odd metadata
            with Image.open(path, formats=FORMATS) as file:
                if file.width * file.height <= MAX_PIXELS:
                    return _upright(file)
        size = f"{file.width} x {file.height} px, more than {MAX_PIXELS:,} in all"
    except Exception as error:  # decoders of broken or hostile files may raise anything
        raise InputError(f"{path} cannot be read as an image ({error}); repair or remove it") from error
    raise InputError(f"{path} is {size}; make it smaller")


def _upright(file: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(file)
    image.load()
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):  # 16-bit greys that PIL widens to 32
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def near_identical(images: Sequence[Image.Image]) -> list[tuple[int, int]]:
    """Pairs of indices of images that are nearly the same."""
    small = [image.resize((16, 16), Image.Resampling.BOX) for image in images]
    pixels = np.array([np.asarray(image, dtype=np.float32).ravel() for image in small])
    distances = [np.abs(pixels[i + 1 :] - pixels[i]).mean(1) for i in range(len(pixels))]
    return [(i, i + 1 + int(j)) for i, row in enumerate(distances) for j in np.flatnonzero(row < NEARLY_EQUAL)]


def square_box(width: int, height: int, view: View) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in px of the largest square at the view's place."""
    side = min(width, height)
    left, top = round((width - side) * view.x), round((height - side) * view.y)
    return (left, top, left + side, top + side)


def crop(image: Image.Image, size_px: int, view: View) -> Image.Image:
    """The largest square at the view's place, resized to `size_px`; mirrored if the view is."""
    square = image.resize((size_px, size_px), Image.Resampling.LANCZOS, square_box(*image.size, view))
    return ImageOps.mirror(square) if view.flip else square


def write_png(image: Image.Image, path: Path, chunks: Mapping[str, object]) -> None:
    """Writes a PNG atomically; viewers show the text chunks."""
    info = PngInfo()
    for key, value in chunks.items():
        info.add_itxt(key, str(value))
    with replaced(path) as beside:
        image.save(beside, format="PNG", pnginfo=info)
