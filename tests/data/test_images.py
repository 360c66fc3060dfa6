from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_dreambooth.data.images import View, crop, list_images, read_caption, read_image, write_png
from lightning_dreambooth.errors import InputError


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "a.png", exif=exif)
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


def test_hidden_files_and_non_images_are_skipped_and_counted(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "a.txt", ".hidden.png", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).touch()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    images, skipped = list_images(tmp_path)
    assert [path.name for path in images] == ["a.jpg", "b.PNG"]
    assert skipped == 3


@pytest.mark.parametrize("name", ["dog.txt", "dog.png.txt"])
def test_a_caption_file_takes_precedence_over_the_prompt(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(" a dog\n on a hill \n")
    assert read_caption(tmp_path / "dog.png", "a dog") == "a dog on a hill"
    assert read_caption(tmp_path / "cat.png", "a cat") == "a cat"


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
