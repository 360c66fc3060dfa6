"""Text on images, in a bundled font with Hangul: wrapping and drawing of lines. Plain PIL."""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from math import ceil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

FONT = "fonts/Pretendard-Regular.otf"  # origin and licence: fonts/README.md
INK, PAPER = "black", "white"
ELLIPSIS = "…"


def font_file() -> Path:
    """The font that comes with the package."""
    return Path(__file__).parent / FONT


@cache
def load_font(size_px: int) -> FreeTypeFont:
    """The bundled font in a size, read on first use."""
    # Not Raqm, which only some Pillow builds have: equal texts must give equal pixels everywhere.
    return ImageFont.truetype(font_file(), size_px, layout_engine=ImageFont.Layout.BASIC)


def line_height(font: FreeTypeFont) -> int:
    """Height of a line in px, spacing included."""
    return sum(font.getmetrics()) + round(font.size / 6)


def drawable(text: str) -> str:
    """Any text => one line without characters that have no glyph of their own.

    Decomposed syllables, as macOS writes them, are composed; line breaks become spaces; joiners, variation selectors
    and lone surrogates are removed. A character that the font lacks stays and is drawn as a striped box.
    """
    shown = "".join(letter for letter in text if letter.isspace() or not _shapeless(letter))
    return unicodedata.normalize("NFC", " ".join(shown.split()))


def _shapeless(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf", "Cs") or 0xFE00 <= ord(letter) <= 0xFE0F


def wrap(text: str, font: FreeTypeFont, width_px: int, max_lines: int) -> list[str]:
    """Text => at most `max_lines` lines of at most `width_px`; if text is cut, the last line ends in an ellipsis."""
    lines: list[str] = []
    rest = drawable(text)
    while rest:
        end = _fitting(rest, font, width_px)
        if end < len(rest) and len(lines) == max_lines - 1:
            end = _fitting(rest, font, width_px, ELLIPSIS)
            return [*lines, rest[:end].rstrip() + ELLIPSIS] if end >= 0 else lines
        if end < 1:  # not even a letter fits
            return lines
        if end < len(rest) and (space := rest.rfind(" ", 0, end + 1)) > 0:
            end = space
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return lines


def _fitting(text: str, font: FreeTypeFont, width_px: int, ending: str = "") -> int:
    """Number of leading letters that fit together with the ending; -1 if the ending alone does not fit."""
    most = min(len(text), max(width_px, 0))  # a letter takes a pixel or more
    return bisect_right(range(most + 1), width_px, key=lambda count: ceil(font.getbbox(text[:count] + ending)[2])) - 1


def write_lines(
    image: Image.Image, lines: Sequence[str], font: FreeTypeFont, box: tuple[int, int, int, int], ink: str = INK
) -> None:
    """Fills a box (left, top, right, bottom) of the image with lines on white; the last line is at its bottom."""
    left, top, right, bottom = box
    # Drawn on a separate image, so that accents and descenders do not leave the box.
    paper = Image.new("RGB", (right - left, bottom - top), PAPER)
    draw = ImageDraw.Draw(paper)
    for number, line in enumerate(reversed(lines), start=1):
        draw.text((0, paper.height - number * line_height(font)), line, fill=ink, font=font)
    image.paste(paper, (left, top))
