import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from helpers.profiles import exif
from PIL import Image

from lightning_dreambooth.data.images import SUFFIXES, View, crop, read_image, write_png
from lightning_dreambooth.errors import InputError


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    image.save(tmp_path / "a.png", exif=exif(ORIENTATION))  # turn by 90 degrees clockwise to see it upright
    upright = read_image(tmp_path / "a.png")
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (255, 255, 255)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "la.png")
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 9, 9])
    palette.save(tmp_path / "p.png", transparency=0)
    for name in ("rgba.png", "la.png", "p.png"):
        assert read_image(tmp_path / name).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparent_red_on_white_is_pink(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 127, 127)


def test_sixteen_bit_grey_keeps_its_brightness(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 40000, np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (156, 156, 156)


def test_palette_and_cmyk_become_rgb(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), (10, 200, 30)).quantize(4).save(tmp_path / "a.gif")
    Image.new("CMYK", (2, 2), (0, 0, 0, 0)).save(tmp_path / "b.jpg")
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == (10, 200, 30)
    assert read_image(tmp_path / "b.jpg").getpixel((0, 0)) == (255, 255, 255)


def test_a_file_that_is_not_an_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        read_image(tmp_path / "a.png")


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:800])
    with pytest.raises(InputError, match=r"a\.jpg cannot be read"):
        read_image(tmp_path / "a.jpg")


SHORT, LONG = 3, 4  # types of EXIF values
ORIENTATION = (0x112, SHORT, 1, b"\x06\0\0\0")
ODD_EXIF = {
    "a width of text": (0x100, 2, 4, b"abc\0"), "a negative width": (0x100, 9, 1, b"\xff\xff\xff\xff"),
    "a width of half a pixel": (0x100, 11, 1, b"\0\0\0\x3f"), "a unit of one byte": (0x128, 1, 1, b"\2\0\0\0"),
    "a resolution that is no number": (0x11A, 11, 1, b"\0\0\xc0\x7f"), "a folder of text": (0x14A, 2, 4, b"abc\0"),
    "a folder in itself": (0x8769, LONG, 1, b"\x08\0\0\0"), "a folder beyond the end": (0x8825, LONG, 1, b"\0\0\1\0"),
    "an unknown type": (0x100, 77, 1, b"abcd"), "text beyond the end": (0x110, 2, 500, b"\0\0\1\0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD_EXIF)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_odd_exif_turns_the_image_by_its_orientation(tmp_path: Path, kind: str, suffix: str) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / f"a.{suffix}", exif=exif(ORIENTATION, ODD_EXIF[kind]))
    assert read_image(tmp_path / f"a.{suffix}").size == (2, 4)


@pytest.mark.parametrize("content", [b"garbage!", b"II", b"", b"II*\0\x08\0\0\0", b"II*\0\x08\0\0\0\xff\xff"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_that_cannot_be_parsed_is_ignored(tmp_path: Path, suffix: str, content: bytes) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + content)
    assert read_image(tmp_path / f"a.{suffix}").size == (4, 2)


@pytest.mark.parametrize("suffix", ["png", "apng", "gif", "webp", "avif", "tif", "mpo"])
def test_the_first_frame_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    format_ = {"apng": "PNG"}.get(suffix)
    frames[0].save(tmp_path / f"a.{suffix}", format=format_, save_all=True, append_images=frames[1:])
    assert np.abs(np.array(read_image(tmp_path / f"a.{suffix}").getpixel((8, 8))) - (255, 0, 0)).max() < 6


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "pipe.png", tmp_path / "folder.png", Path("/dev/zero"), Path("/dev/stdin")):
        with pytest.raises(InputError, match=f"{path} is not a regular file"):
            read_image(path)


@pytest.mark.skipif(not find_spec("pillow_heif"), reason="an extra")
def test_heic_is_read_with_its_extra(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (200, 30, 40)).save(tmp_path / "a.heic", quality=100)
    assert ".heic" in SUFFIXES
    assert np.abs(np.array(read_image(tmp_path / "a.heic").getpixel((9, 9))) - (200, 30, 40)).max() < 6


def test_crop_takes_the_square_where_the_view_lies() -> None:
    image = Image.new("RGB", (30, 10), "black")
    image.paste("white", (20, 0, 30, 10))
    colours = {x: crop(image, 8, View(x=x)).getpixel((4, 4)) for x in (0.0, 0.5, 1.0)}
    assert colours == {0.0: (0, 0, 0), 0.5: (0, 0, 0), 1.0: (255, 255, 255)}


def test_a_flipped_view_mirrors_the_same_crop() -> None:
    image = Image.effect_noise((20, 20), 60).convert("RGB")
    plain, flipped = (np.asarray(crop(image, 16, View(flip))) for flip in (False, True))
    assert np.array_equal(plain, flipped[:, ::-1])


def test_a_png_holds_the_text_that_says_how_it_was_made(tmp_path: Path) -> None:
    write_png(Image.new("RGB", (2, 2)), tmp_path / "new/a.png", {"prompt": "웹툰 girl", "seed": 3})
    assert Image.open(tmp_path / "new/a.png").text == {"prompt": "웹툰 girl", "seed": "3"}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
