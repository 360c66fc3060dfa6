"""Finds faces of anime style with the package `animeface` (nagadomi's imager-animeface)."""

from pathlib import Path

from PIL import Image

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.prepare.boxes import Face, around
from lightning_dreambooth.prepare.extras import require

NAME = "animeface"
SAMPLE = Path(__file__).with_name("face.png")  # a drawn face
# Its boxes are wider than the face and lie lower: medians over 319 faces of comic pages, in edges of the face.
WIDTH, BELOW = 1.137, 0.077


class AnimeFaces:
    """The detector.

    Raises:
        InputError: if it is not installed, or does not work with the Pillow that is.
    """

    name = NAME

    def __init__(self) -> None:
        require("prepare-anime", NAME)
        with Image.open(SAMPLE, formats=["PNG"]) as sample:
            found = self.find(sample.convert("RGB"))
        if len(found) != 1:  # it reads Pillow's memory, and with another layout of it finds nothing, silently
            raise InputError(
                "animeface finds no face where there is one: it does not work with this Pillow; "
                "pip install 'pillow<12', or give --detectors [mtcnn]"
            )

    def find(self, image: Image.Image) -> list[Face]:
        """The faces on an RGB image."""
        import animeface

        faces = []
        for found in animeface.detect(image):
            place = found.face.pos
            edge = place.width / WIDTH
            box = around(place.x + place.width / 2, place.y + place.height / 2 - BELOW * edge, edge)
            faces.append(Face(box, found.likelihood, frozenset({NAME})))
        return faces
