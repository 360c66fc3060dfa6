"""From one image to its candidates: what is cut out, and whether it is good enough to train on."""

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from lightning_dreambooth.data.images import View
from lightning_dreambooth.data.images import crop_box as middle_box
from lightning_dreambooth.prepare.boxes import Box, Face, crop_box, share_inside
from lightning_dreambooth.prepare.detection import copy_scale
from lightning_dreambooth.prepare.looks import blank_edge, sharpness
from lightning_dreambooth.prepare.manifest import Row, Square
from lightning_dreambooth.prepare.settings import FaceSettings, WholeSettings

MIN_INSIDE = 0.9  # share of a face's box that lies on the image: of a face at the edge, a part is missing


def face_candidates(image: Image.Image, faces: Sequence[Face], settings: FaceSettings, source: Row) -> list[Row]:
    """A row for each face of an image, with the square around it; one row without a square if there is no face.

    Args:
        image: RGB.
        faces: Its faces.
        settings: Which are kept, and how they are cut out.
        source: What all rows say of the file.
    """
    rows = []
    for number, face in enumerate(faces, start=1):
        left, top, right, bottom = crop_box(face.box, settings.expand, settings.shift, image.size)
        row = replace(
            source, number=number, detectors="+".join(sorted(face.detectors)), score=face.score,
            face=_whole(face.box), crop=(left, top, right, bottom),
        )  # fmt: skip
        blank = blank_edge(image.crop((left, top, right, bottom)))
        rows.append(replace(row, blank=blank, reason=face_fault(face, blank, settings, image.size)))
    return rows or [replace(source, reason="no_face")]


def face_fault(face: Face, blank: float, settings: FaceSettings, size: tuple[int, int]) -> str:
    """Why a face on an image of this width and height is dropped; empty if it is kept."""
    if face.score < settings.min_score:
        return "score"
    if min(face.box.width, face.box.height) * copy_scale(size) < settings.min_side:
        return "small"
    if face.box.aspect > settings.max_aspect:
        return "aspect"
    if share_inside(face.box, size) < MIN_INSIDE:
        return "cut_off"
    return "blank_edge" if blank > settings.max_blank else ""


def whole_candidate(image: Image.Image, settings: WholeSettings, source: Row) -> Row:
    """A row for the middle square of an image.

    Args:
        image: RGB.
        settings: Which images are kept.
        source: What the row says of the file.
    """
    crop, sharp = middle_box(*image.size, View()), sharpness(image)
    reason = ""
    if min(image.size) < settings.min_side:
        reason = "small"
    elif max(image.size) > settings.max_aspect * min(image.size):
        reason = "aspect"
    elif sharp < settings.min_sharpness:
        reason = "blurred"
    return replace(source, crop=crop, sharpness=sharp, reason=reason)


def _whole(box: Box) -> Square:
    left, top, right, bottom = map(round, box)
    return left, top, right, bottom
