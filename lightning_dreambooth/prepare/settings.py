"""What is kept, and how it is cut: the options of `prepare`, with the values of the study of webtoon faces."""

from dataclasses import dataclass

from lightning_dreambooth.bounds import check_range


@dataclass(frozen=True)
class FaceSettings:
    """Which faces are kept, and how they are cut out.

    Args:
        min_score: How sure the detector must be, 0 ... 1.
        min_side: Shorter side in px, on a copy of a strip of pages that is 640 px wide, and of any other image on one
            of at most 1280 px.
        max_aspect: Longer by shorter side of the box.
        expand: Side of the square that is cut out, in edges of the face.
        shift: How far the square's centre lies above the face's, in edges of the face.
        max_blank: The widest black or white margin of the square, as a share of its side.
    """

    min_score: float = 0.7
    min_side: float = 64.0
    max_aspect: float = 1.3
    expand: float = 1.8
    shift: float = 0.1
    max_blank: float = 0.075

    def check(self) -> None:
        """Raises InputError if a value is out of its bounds."""
        check_range("--faces.min_score", self.min_score, 0, 1)
        check_range("--faces.min_side", self.min_side, 1)
        check_range("--faces.max_aspect", self.max_aspect, 1)
        check_range("--faces.expand", self.expand, 1, 10, "1 is the face alone")
        check_range("--faces.shift", self.shift, -1, 1)
        check_range("--faces.max_blank", self.max_blank, 0, 1)


@dataclass(frozen=True)
class WholeSettings:
    """Which images are kept as a whole; their middle square is used.

    Args:
        min_side: Shorter side in px.
        max_aspect: Longer by shorter side.
        min_sharpness: Deviation of the Laplacian, in levels of 255, on a copy with a short side of 256 px.
    """

    min_side: float = 256.0
    max_aspect: float = 2.0
    min_sharpness: float = 4.0

    def check(self) -> None:
        """Raises InputError if a value is out of its bounds."""
        check_range("--whole.min_side", self.min_side, 1)
        check_range("--whole.max_aspect", self.max_aspect, 1)
        check_range("--whole.min_sharpness", self.min_sharpness, 0)
