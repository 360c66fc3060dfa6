"""Boxes of faces on an image, and the square crops around them. Lengths in px; y points down."""

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import NamedTuple

from lightning_dreambooth.bounds import Number

SAME_FACE = 0.3  # intersection over union from which two boxes are of one face
INSIDE = 0.6  # or this share of the smaller one lies in the other


class Box(NamedTuple):
    """A rectangle; `right` and `bottom` are not part of it."""

    left: Number
    top: Number
    right: Number
    bottom: Number

    @property
    def width(self) -> Number:
        """Its width."""
        return self.right - self.left

    @property
    def height(self) -> Number:
        """Its height."""
        return self.bottom - self.top

    @property
    def area(self) -> Number:
        """Its area; 0 if it is empty."""
        return max(self.width, 0) * max(self.height, 0)

    @property
    def aspect(self) -> float:
        """Its longer by its shorter side."""
        return max(self.width, self.height) / min(self.width, self.height)

    def intersected(self, other: "Box") -> "Box":
        """What it has in common with another box."""
        return Box(
            max(self.left, other.left), max(self.top, other.top), min(self.right, other.right),
            min(self.bottom, other.bottom),
        )  # fmt: skip

    def scaled(self, factor: Number) -> "Box":
        """The same place on an image of another size."""
        return Box(*(factor * value for value in self))

    def moved(self, x: Number, y: Number) -> "Box":
        """The box further to the right and down."""
        return Box(self.left + x, self.top + y, self.right + x, self.bottom + y)


class Face(NamedTuple):
    """A face that was found.

    Attributes:
        box: Where it is.
        score: How sure the detector is, 0 ... 1.
        detectors: Who found it.
    """

    box: Box
    score: float
    detectors: frozenset[str]


def around(x: Number, y: Number, width: Number, height: Number | None = None) -> Box:
    """The box with its centre there; a square if only the width is given."""
    height = width if height is None else height
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def merge(faces: Iterable[Face]) -> list[Face]:
    """One box for each face: the surest of those that overlap, with all who found it; from top to bottom."""
    merged: list[Face] = []
    for face in sorted(faces, key=lambda face: (-face.score, face.box)):
        same = next((i for i, other in enumerate(merged) if _same(face.box, other.box)), None)
        if same is None:
            merged.append(face)
        else:
            merged[same] = merged[same]._replace(detectors=merged[same].detectors | face.detectors)
    return sorted(merged, key=lambda face: (face.box.top, face.box.left))


def _same(one: Box, other: Box) -> bool:
    common = one.intersected(other).area
    smaller, union = min(one.area, other.area), one.area + other.area - common
    return common >= SAME_FACE * union or common > INSIDE * smaller


def crop_box(face: Box, expand: Number, shift: Number, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square around a face, in whole px, moved into the image; as large as the image allows.

    Args:
        face: The face.
        expand: Side of the square as a multiple of the face's edge.
        shift: How far the square's centre lies above the face's, in edges of the face.
        size: Width and height of the image.
    """
    edge = sqrt(face.area)
    side = min(max(1, round(expand * edge)), *size)
    x, y = (face.left + face.right) / 2, (face.top + face.bottom) / 2 - shift * edge
    left, top = (min(max(round(at - side / 2), 0), most - side) for at, most in zip((x, y), size, strict=True))
    return left, top, left + side, top + side


def share_inside(face: Box, size: Sequence[int]) -> float:
    """The share of a box that lies on an image of this width and height."""
    return face.intersected(Box(0, 0, *size)).area / face.area
