import numpy as np
import pytest
from helpers import drawn
from PIL import Image, ImageFilter, ImageOps

from lightning_dreambooth.prepare.looks import bits_apart, blank_edge, image_hash, sharpness


@pytest.mark.parametrize(("side", "margin"), [("left", 10), ("top", 10), ("right", 10), ("bottom", 10)])
@pytest.mark.parametrize("colour", ["white", "black", (250, 251, 249)])
def test_the_widest_blank_margin_counts(side: str, margin: int, colour: str | tuple[int, int, int]) -> None:
    image = drawn.face(100)
    box = {"left": (0, 0, 10, 100), "top": (0, 0, 100, 10), "right": (90, 0, 100, 100), "bottom": (0, 90, 100, 100)}
    image.paste(colour, box[side])
    assert blank_edge(image) == margin / 100


def test_a_coloured_margin_is_not_blank() -> None:
    assert blank_edge(ImageOps.expand(drawn.face(80), 10, (255, 200, 0))) == 0


def test_an_empty_image_is_all_margin() -> None:
    assert blank_edge(Image.new("RGB", (50, 50), "white")) == 1


def test_blur_takes_sharpness_away_and_size_does_not() -> None:
    image = drawn.face(512)
    sharp = sharpness(image)
    assert sharpness(image.filter(ImageFilter.GaussianBlur(12))) < sharp / 4
    assert sharpness(image.resize((1024, 1024), Image.Resampling.LANCZOS)) == pytest.approx(sharp, rel=0.05)


def test_an_even_image_has_no_sharpness() -> None:
    assert sharpness(Image.new("RGB", (40, 300), "gray")) == 0


def test_copies_share_nearly_all_bits_and_others_do_not() -> None:
    image = drawn.face(256)
    small = image.resize((100, 100), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).integers(-9, 9, (256, 256, 3))
    noisy = Image.fromarray(np.clip(np.array(image) + noise, 0, 255).astype(np.uint8))
    assert bits_apart(image_hash(image), image_hash(small)) <= 6
    assert bits_apart(image_hash(image), image_hash(noisy)) <= 6
    assert bits_apart(image_hash(image), image_hash(image.rotate(90))) > 20
    assert 0 <= image_hash(image) < 2**64
