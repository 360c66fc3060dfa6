from pathlib import Path

import numpy as np
import pytest
from helpers.profiles import (
    ADOBE_RGB,
    DISPLAY_P3,
    INKS,
    SRGB,
    cmyk_profile,
    encode_srgb,
    gamma,
    grey_profile,
    lab_to_srgb,
    png_file,
    rgb_profile,
    srgb_curve,
)
from PIL import Image, ImageCms

from lightning_dreambooth.data.images import read_image

NOISE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
P3 = rgb_profile(DISPLAY_P3, srgb_curve)
SPACES = {"Display P3": (DISPLAY_P3, srgb_curve), "Adobe RGB": (ADOBE_RGB, gamma(563 / 256))}


def read(image: Image.Image, path: Path, **options: object) -> np.ndarray:
    image.save(path, **options)
    return np.asarray(read_image(path)).astype(int)


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp", "avif"])
def test_the_red_of_display_p3_is_pure_in_srgb(tmp_path: Path, suffix: str) -> None:
    options = {"jpg": {"quality": 100, "subsampling": 0}, "avif": {"quality": 100, "subsampling": "4:4:4"}}
    image = Image.new("RGB", (16, 16), (234, 51, 35))
    lossless = {"lossless": True} if suffix == "webp" else options.get(suffix, {})
    colour = read(image, tmp_path / f"a.{suffix}", icc_profile=P3, **lossless)[8, 8]
    assert np.abs(colour - (255, 0, 0)).max() <= (0 if suffix in ("png", "tif", "webp") else 12)  # dark ends are steep


@pytest.mark.parametrize("name", SPACES)
def test_colours_are_those_that_the_profile_means(tmp_path: Path, name: str) -> None:
    primaries, curve = SPACES[name]
    seen = read(Image.fromarray(NOISE), tmp_path / "a.png", icc_profile=rgb_profile(primaries, curve))
    meant = encode_srgb(curve(NOISE / 255) @ np.array(primaries))
    assert np.abs(seen - meant).max() < 2
    assert np.abs(NOISE - meant).max() > 20


def test_greys_are_those_that_the_profile_means(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    seen = read(Image.fromarray(levels), tmp_path / "a.png", icc_profile=grey_profile(gamma(1.8)))
    meant = encode_srgb((levels[..., None] / 255) ** 1.8 * (0.9642, 1, 0.8249))
    assert np.abs(seen - meant).max() < 1.5


@pytest.mark.parametrize("ink", range(4))
def test_inks_have_the_colours_that_the_profile_means(tmp_path: Path, ink: int) -> None:
    solid = Image.new("CMYK", (2, 2), tuple(255 if i == ink else 0 for i in range(4)))
    seen = read(solid, tmp_path / "a.tif", icc_profile=cmyk_profile())[0, 0]
    assert np.abs(seen - lab_to_srgb(INKS[ink])).max() < 5  # a level of Lab is 8 bits


def test_lab_is_read_without_a_profile(tmp_path: Path) -> None:
    lab = ImageCms.applyTransform(
        Image.fromarray(NOISE),
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    )
    assert np.abs(read(lab, tmp_path / "a.tif") - NOISE).mean() < 3  # Lab in 8 bits is coarse


SAME = {
    "sRGB": rgb_profile(SRGB, srgb_curve), "sRGB of littleCMS": ImageCms.ImageCmsProfile(
        ImageCms.createProfile("sRGB")
    ).tobytes(), "empty": b"", "text": b"not a profile", "zeros": bytes(500), "half": P3[: len(P3) // 2],
    "of inks": cmyk_profile(), "of greys": grey_profile(gamma(1.8)), "without tags": P3[:128] + bytes(4),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_srgb_and_profiles_that_cannot_be_applied_leave_every_bit(tmp_path: Path, kind: str, suffix: str) -> None:
    assert np.array_equal(read(Image.fromarray(NOISE), tmp_path / f"a.{suffix}", icc_profile=SAME[kind]), NOISE)


def test_an_image_that_is_read_keeps_no_profile(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png", icc_profile=P3)
    read_image(tmp_path / "a.png").save(tmp_path / "b.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), read_image(tmp_path / "b.png"))


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_transparency_and_profile_are_both_applied(tmp_path: Path, mode: str) -> None:
    profile = grey_profile(gamma(1.8)) if mode == "LA" else P3
    opaque = Image.new("RGB", (4, 4), (234, 51, 35)).convert("L" if mode == "LA" else "RGB")
    colour = read(opaque, tmp_path / "opaque.png", icc_profile=profile)[0, 0]
    image = opaque.convert(mode)
    if mode == "P":
        image = opaque.quantize(2)
        seen = read(image, tmp_path / "a.png", icc_profile=profile, transparency=bytes([128, 128]))
    else:
        image.putalpha(128)
        seen = read(image, tmp_path / "a.png", icc_profile=profile)
    assert np.abs(seen[0, 0] - (colour * 128 + 255 * 127) / 255).max() <= 1


@pytest.mark.parametrize(("channels", "depth"), [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (3, 8), (3, 16)])
def test_exactly_the_transparent_colour_becomes_white(tmp_path: Path, channels: int, depth: int) -> None:
    values = np.random.default_rng(depth).integers(0, 2**depth - 1, (8, 8, channels))
    key = values[3, 3]
    (tmp_path / "key.png").write_bytes(png_file(values, depth, key.tolist()))
    (tmp_path / "plain.png").write_bytes(png_file(values, depth))
    seen, plain = (np.asarray(read_image(tmp_path / name)) for name in ("key.png", "plain.png"))
    white = (values == key).all(-1)
    assert np.array_equal(seen, np.where(white[..., None], 255, plain))
    assert (seen[white] == 255).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_sixteen_bit_transparency_is_composited_on_white(tmp_path: Path, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (8, 8, channels))
    (tmp_path / "a.png").write_bytes(png_file(values, 16))
    colour, alpha = values[..., :-1] / 257, values[..., -1:] / 65535
    assert np.abs(np.asarray(read_image(tmp_path / "a.png")) - (colour * alpha + 255 * (1 - alpha))).max() < 2


GREYS = {
    "floats 0 ... 1": (np.float32, 1), "floats 0 ... 255": (np.float32, 255), "floats of 16 bits": (np.float32, 65535),
    "integers of 8 bits": (np.int32, 255), "integers of 16 bits": (np.int32, 65535),
    "integers of 31 bits": (np.int32, 2**31 - 1), "16 bits": (np.uint16, 65535),
}  # fmt: skip


@pytest.mark.parametrize("kind", GREYS)
def test_greys_of_every_depth_keep_their_brightness(tmp_path: Path, kind: str) -> None:
    number, white = GREYS[kind]
    ramp = np.linspace(0, 1, 256)[None]
    seen = read(Image.fromarray((ramp * white).astype(number)), tmp_path / "a.tif")
    assert np.abs(seen - ramp[..., None] * 255).max() <= 1


def tiff(values: np.ndarray, sample_format: int) -> bytes:
    """A grey TIFF of any number format, without compression."""
    bits = 8 * values.dtype.itemsize
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 278: height,
            279: values.nbytes, 339: sample_format}  # fmt: skip
    entries = b"".join(
        np.array([tag, 4], "<u2").tobytes() + np.array([1, v], "<u4").tobytes() for tag, v in tags.items()
    )
    return b"II*\0\x08\0\0\0" + np.array(len(tags), "<u2").tobytes() + entries + bytes(4) + values.tobytes()


@pytest.mark.parametrize(("kind", "sample_format", "white"), [("<i2", 2, 2**15 - 1), ("<u4", 1, 2**32 - 1)])
def test_the_white_of_other_integers_is_their_largest(
    tmp_path: Path, kind: str, sample_format: int, white: int
) -> None:
    (tmp_path / "a.tif").write_bytes(tiff((np.linspace(0, 1, 256)[None] * white).astype(kind), sample_format))
    assert np.abs(np.asarray(read_image(tmp_path / "a.tif"))[0, :, 0] - np.arange(256.0)).max() <= 1


def test_floats_beyond_their_range_are_black_or_white(tmp_path: Path) -> None:
    values = np.array([[-1, 0, 0.5, 1, 1.4, np.nan, np.inf]], np.float32)
    seen = read(Image.fromarray(values), tmp_path / "a.tif")
    assert seen[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0, 255]
