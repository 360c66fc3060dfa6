"""Faces and comic pages, drawn by Pillow alone, with the boxes of the faces."""

from math import cos, pi, sin
from typing import NamedTuple

from PIL import Image, ImageDraw

from lightning_dreambooth.data.lettering import load_font

Colour = tuple[int, int, int]
HAIR: list[Colour] = [(120, 70, 40), (60, 50, 60), (230, 200, 120), (200, 80, 110), (80, 90, 170), (150, 40, 30)]
SHADES = [
    (0.5, -0.25),
    (0.5, 0.25),
    (1.5, 0.0),
    (1.5, 0.5),
    (2.5, 0.0),
    (2.5, 0.5),
]  # waves across, and where they begin
SKIN, INK, CHEEK, MOUTH, IRIS = (255, 226, 206), (48, 30, 32), (255, 188, 178), (170, 60, 60), (60, 95, 175)
FINE = 4  # drawn so many times larger, then shrunk: smooth lines
FACE = (0.23, 0.28, 0.77, 0.82)  # box of the face in the drawing, as shares of its side


class Drawn(NamedTuple):
    """A drawing of a face, in shares of its side."""

    draw: ImageDraw.ImageDraw
    side: int

    def at(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * self.side, y * self.side) for x, y in points]

    def oval(self, x: float, y: float, width: float, height: float, fill: Colour, line: bool = False) -> None:
        box = self.at((x - width / 2, y - height / 2), (x + width / 2, y + height / 2))
        self.draw.ellipse(box, fill=fill, outline=INK if line else None, width=self.width(1) if line else 0)

    def arc(self, x: float, y: float, width: float, height: float, turn: tuple[int, int], thick: float) -> None:
        box = self.at((x - width / 2, y - height / 2), (x + width / 2, y + height / 2))
        self.draw.arc(box, *turn, fill=INK, width=self.width(thick))

    def width(self, thick: float) -> int:
        return max(1, round(thick * self.side / 160))


def face(side_px: int, hair: Colour = HAIR[0], behind: Image.Image | None = None) -> Image.Image:
    """A square drawing of a head with large eyes, as comics have them."""
    image = Image.new("RGB", (FINE * side_px, FINE * side_px), (205, 222, 236))
    if behind:
        image.paste(behind.resize(image.size))
    drawn = Drawn(ImageDraw.Draw(image), FINE * side_px)
    drawn.oval(0.5, 0.46, 0.68, 0.76, hair, line=True)
    drawn.draw.rectangle(drawn.at((0.17, 0.45), (0.83, 0.92)), fill=hair)
    drawn.draw.polygon(drawn.at((0.43, 0.78), (0.57, 0.78), (0.6, 1), (0.4, 1)), fill=SKIN)
    chin = [_cheek(step / 40) for step in range(41)]
    drawn.draw.polygon(drawn.at(*chin, (0.76, 0.36), (0.66, 0.22), (0.34, 0.22), (0.24, 0.36)), fill=SKIN)
    drawn.draw.line(drawn.at(*chin), fill=INK, width=drawn.width(1))
    for side in (-1, 1):
        _eye(drawn, 0.5 + side * 0.125, hair)
        drawn.oval(0.5 + side * 0.19, 0.68, 0.08, 0.03, CHEEK)
    drawn.draw.line(drawn.at((0.5, 0.64), (0.494, 0.66)), fill=INK, width=drawn.width(1))
    drawn.draw.chord(drawn.at((0.455, 0.7), (0.545, 0.77)), 0, 180, fill=MOUTH, outline=INK)
    fringe = [(0.78 - 0.04 * step, 0.44 if step % 2 else 0.34) for step in range(15)]
    drawn.draw.polygon(drawn.at((0.22, 0.5), (0.2, 0.28), (0.5, 0.09), (0.8, 0.28), (0.78, 0.5), *fringe), fill=hair)
    drawn.draw.line(drawn.at(*fringe), fill=INK, width=drawn.width(1))
    return image.resize((side_px, side_px), Image.Resampling.LANCZOS)


def wall(number: int, tint: Colour) -> Image.Image:
    """Light and shade behind a face, of its own for each number: faces alone look alike to a hash."""
    waves, start = SHADES[number % len(SHADES)]
    light = [0.75 + 0.25 * sin(2 * pi * (waves * x / 64 + start)) for x in range(64)]
    image = Image.new("RGB", (64, 1))
    image.putdata([(round(tint[0] * level), round(tint[1] * level), round(tint[2] * level)) for level in light])
    return image


def _cheek(share: float) -> tuple[float, float]:
    """A point of the lower outline of the face, from the left to the right."""
    angle = pi * share
    return 0.5 - 0.27 * cos(angle) * (1 - 0.38 * sin(angle) ** 3), 0.48 + 0.36 * sin(angle)


def _eye(drawn: Drawn, x: float, hair: Colour) -> None:
    drawn.oval(x, 0.547, 0.15, 0.145, (255, 255, 255))
    drawn.oval(x, 0.545, 0.1, 0.14, IRIS, line=True)
    drawn.oval(x, 0.547, 0.052, 0.075, (15, 15, 30))
    drawn.oval(x - 0.02, 0.507, 0.03, 0.035, (255, 255, 255))
    drawn.arc(x, 0.547, 0.17, 0.175, (195, 345), 3)
    drawn.arc(x, 0.547, 0.12, 0.13, (50, 130), 1)
    drawn.arc(x, 0.46, 0.16, 0.13, (215, 325), 2)


class Place(NamedTuple):
    """Where a face is drawn on a page: its left, top and side in px, and its hair."""

    left: int
    top: int
    side: int
    hair: int

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the face."""
        left, top, right, bottom = FACE
        return (
            self.left + left * self.side, self.top + top * self.side, self.left + right * self.side,
            self.top + bottom * self.side,
        )  # fmt: skip


def page(size: tuple[int, int], places: list[Place], seed: int = 0) -> Image.Image:
    """A strip of comic panels with faces, balloons with text between them, and white gutters."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font = load_font(22)
    for place in places:
        tint: Colour = tuple(150 + (seed * 53 + place.top * 7 + 37 * channel) % 90 for channel in range(3))  # type: ignore
        panel = (20, place.top - 60, size[0] - 20, place.top + place.side + 60)
        draw.rectangle(panel, fill=tint, outline=INK, width=3)
        for line in range(panel[1] + 12, panel[3], 24):
            draw.line((panel[0], line, panel[2], line + 9), fill=tuple(value - 14 for value in tint), width=2)
        drawing = face(place.side, HAIR[place.hair], wall(place.hair, tint))
        image.paste(drawing, (place.left, place.top))
        balloon = (panel[2] - 170, panel[3] + 8, panel[2] - 10, panel[3] + 68)
        draw.ellipse(balloon, fill="white", outline=INK, width=2)
        draw.text((balloon[0] + 34, balloon[1] + 16), "안녕, sks!", fill=INK, font=font)
    return image
