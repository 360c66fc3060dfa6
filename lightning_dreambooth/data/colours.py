"""Decoded pixels of every mode, depth and colour space => 8-bit sRGB on white. Plain PIL, and littleCMS through it."""

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

WHITES = (255, 65535, 2**31 - 1, 2**32 - 1)  # of 32-bit pixels, which hold values of any depth; the first that fits
OVERSHOOT = 2.0  # floats up to this are 0 ... 1 with highlights beyond white
GRID = 17  # levels per channel of the colours by which a profile is compared with sRGB
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}  # colour space of a profile: mode of its pixels
GREYS = ("1", "L", "LA", "La")
# Pillow leaves the transparent value of a PNG at the file's depth.
KEY_SCALES = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}


def raw_mode(file: Image.Image) -> str:
    """How the pixels of a file that is not loaded yet are packed, such as `RGB;16B`."""
    tiles = getattr(file, "tile", None)
    args = tiles[0].args if tiles else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def to_srgb(image: Image.Image, packed: str) -> Image.Image:
    """An image of any mode => RGB in sRGB by its ICC profile, transparency on white.

    Args:
        image: The image.
        packed: Its raw mode in the file.
    """
    profile = image.info.get("icc_profile")
    image = to_bytes(image, packed)
    if not image.has_transparency_data:
        return apply_profile(image, profile)
    layer = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
    colours = apply_profile(layer.convert("L" if image.mode in GREYS else "RGB"), profile)
    colours.putalpha(layer.getchannel("A"))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")


def to_opacity(image: Image.Image, packed: str) -> Image.Image:
    """An image of any mode => how opaque each pixel is, 0 ... 255; 255 if nothing is transparent.

    Args:
        image: The image.
        packed: Its raw mode in the file.
    """
    image = to_bytes(image, packed)
    if not image.has_transparency_data:
        return Image.new("L", image.size, 255)
    return image.convert("LA" if image.mode == "La" else "RGBA").getchannel("A")


def to_bytes(image: Image.Image, packed: str) -> Image.Image:
    """The image with 8 bits per channel, and its transparent value, if it has one, at that depth."""
    key = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = Image.fromarray(_to_bytes(values, packed))
        if isinstance(key, int):
            grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        return grey
    if packed in KEY_SCALES and key is not None:
        scale = KEY_SCALES[packed]
        image.info["transparency"] = tuple(int(v * scale) for v in key) if isinstance(key, tuple) else int(key * scale)
    return image


def _to_bytes(values: NDArray[Any], packed: str) -> NDArray[np.uint8]:
    if values.dtype.itemsize == 2:
        return (values.astype(np.uint32) >> 8).astype(np.uint8)
    if packed == "I;32N":
        values = values.view(np.uint32)
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=np.inf, neginf=0.0)
    peak = values.max(initial=0.0, where=np.isfinite(values))
    if packed in ("I;16S", "I;16BS"):
        white = 2**15 - 1
    elif packed.startswith("F") and peak <= OVERSHOOT:
        white = 1
    else:
        white = next((white for white in WHITES if peak <= white), WHITES[-1])
    return np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8)


def apply_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Opaque pixels => RGB in sRGB; without a profile that can be applied, as PIL converts them."""
    if image.mode not in SPACES.values():
        image = image.convert("L" if image.mode in GREYS else "RGB")
    transform = build_transform(profile, image.mode)
    return image.convert("RGB") if transform is None else _applied(transform, image)


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    result = ImageCms.applyTransform(image, transform)
    assert result is not None  # only in place it is
    return result


@lru_cache(maxsize=16)
def build_transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB, relative colorimetric.

    None if there is nothing to do: without a profile, with one that is broken or of another colour space than the
    pixels', and with one that is sRGB to within a level of 255, so that the common photo keeps its bits.
    """
    if profile is None and mode != "LAB":
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile) if profile else ImageCms.createProfile("LAB"))
        if SPACES.get(source.profile.xcolor_space.strip()) != mode:
            return None
        transform = ImageCms.buildTransform(source, SRGB, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
        return None if _changes_nothing(transform, mode) else transform
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode not in ("RGB", "L"):
        return False
    levels = np.linspace(0, 255, GRID).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    probe = Image.fromarray(colours if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    before, after = (np.asarray(image, dtype=np.int16) for image in (probe.convert("RGB"), _applied(transform, probe)))
    return int(np.abs(after - before).max()) <= 1
