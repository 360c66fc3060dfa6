"""Text on images: glyphs of letters, and ends of lines."""

import subprocess
import sys
import unicodedata
from hashlib import sha256
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image, ImageFont

from lightning_dreambooth.data.lettering import FONT, drawable, line_height, load_font, wrap, write_lines

PUNCTUATION = "\u2026\u2014\u2013\u201c\u201d\u2018\u2019\u00b7\u00d7\u20a9"  # dashes, quotes, dots, times, won
NO_LETTER = "\U0010fffd"  # no font has it: its glyph is that of every missing letter
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
ODD = [
    f"{FAMILY} ok \u2665\ufe0f", "\ud83d half", "a\x00b\x1b[0m", "漢字", "שלום", "\u202eabc", "", " ", "\n\n",
    "e" + "\u0301" * 50, "W" * 5000,
]  # fmt: skip


def glyph(letter: str, size_px: int = 24) -> bytes:
    return bytes(load_font(size_px).getmask(letter))


def inked(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")) < 255


@pytest.mark.parametrize("letters", ["가각갂갃뷁힣웹툰ㄱㅎ", "aZ09", "éèñöüßŁčžőş", PUNCTUATION, "Яжαβかナ"])
def test_letters_have_glyphs_of_their_own(letters: str) -> None:
    glyphs = {glyph(letter) for letter in letters}
    assert len(glyphs) == len(letters)
    assert not glyphs & {glyph(NO_LETTER), b""}


def test_every_hangul_syllable_has_a_glyph() -> None:
    missing = glyph(NO_LETTER, 12)
    assert not [chr(code) for code in range(0xAC00, 0xD7A4) if glyph(chr(code), 12) == missing]


def test_spaces_are_seen() -> None:
    font = load_font(12)
    assert font.getlength("a b") > font.getlength("ab") + 2


def test_decomposed_syllables_are_composed() -> None:
    for text in ("웹툰", "café"):
        assert drawable(unicodedata.normalize("NFD", text)) == text


def test_characters_without_a_glyph_of_their_own_are_removed() -> None:
    assert drawable("a\u200d b\ufe0f\n\tc\ud83d\x00") == "a b c"


@pytest.mark.parametrize("text", [*ODD, "a photo of sks girl, " * 9, "웹툰 스타일의 소녀 " * 9])
@pytest.mark.parametrize("width_px", [0, 3, 40, 300])
def test_lines_keep_their_width_and_number(text: str, width_px: int) -> None:
    font = load_font(12)
    lines = wrap(text, font, width_px, 2)
    assert len(lines) <= 2
    assert all(line and font.getbbox(line)[2] <= width_px for line in lines)


def test_nothing_is_lost_where_there_is_room_and_an_ellipsis_says_where_there_is_not() -> None:
    text, font = "a photo of sks girl with pink hair", load_font(12)
    whole, short = wrap(text, font, 80, 9), wrap(text, font, 80, 2)
    assert len(whole) > 2
    assert " ".join(whole) == text
    assert short[0] == whole[0]
    assert " ".join(short).endswith("\u2026")
    assert text.startswith(" ".join(short)[:-1])
    assert "".join(wrap("웹툰" * 20, font, 80, 20)) == "웹툰" * 20


@pytest.mark.parametrize("text", ODD)
def test_lines_are_drawn_in_their_box_only(text: str) -> None:
    font = load_font(16)
    image = Image.new("RGB", (100, 60), "red")
    write_lines(image, [text.replace("\ud83d", "")] * 3, font, (10, 20, 90, 20 + line_height(font)))
    outside = np.asarray(image).copy()
    outside[20 : 20 + line_height(font), 10:90] = (255, 0, 0)
    assert np.array_equal(outside, np.asarray(Image.new("RGB", (100, 60), "red")))


def test_lines_end_at_the_bottom_of_their_box() -> None:
    font = load_font(16)
    image = Image.new("RGB", (100, 3 * line_height(font)), "white")
    write_lines(image, ["one"], font, (0, 0, *image.size))
    rows = np.flatnonzero(inked(image).any(1))
    assert rows.min() >= 2 * line_height(font)


def test_the_font_is_the_one_that_its_readme_describes() -> None:
    folder = files("lightning_dreambooth.data") / "fonts"
    assert sha256((folder.parent / FONT).read_bytes()).hexdigest() in (folder / "README.md").read_text()
    assert "SIL OPEN FONT LICENSE Version 1.1" in (folder / "LICENSE.txt").read_text()


def test_nothing_is_read_on_import() -> None:
    check = (
        "import sys; from PIL import ImageFont; ImageFont.truetype = None\n"
        "import lightning_dreambooth.data.grids; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_equal_texts_give_equal_pixels_whatever_pillow_can_do() -> None:
    assert load_font(12).layout_engine == ImageFont.Layout.BASIC
