"""What an image looks like: blank edges, sharpness, and a hash that nearly equal images share."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import laplace

from lightning_dreambooth.prepare.extras import require

BLANK = 12  # levels of 255 from black or white that count as such
SPECKS = 0.02  # share of a row or column that may differ: JPEG's noise
SHARP_SIDE_PX = 256  # to which images are shrunk before their sharpness is compared


def blank_edge(image: Image.Image) -> float:
    """The widest margin of only black or only white, as a share of the image's edge: 0 ... 1."""
    grey = np.asarray(image.convert("L"))
    return max(_margin(lines) for lines in (grey, grey[::-1], grey.T, grey.T[::-1]))


def _margin(lines: NDArray[np.uint8]) -> float:
    """The share of lines, from the first on, that are of one blank colour."""
    white, black = ((test.mean(1) >= 1 - SPECKS) for test in (lines >= 255 - BLANK, lines <= BLANK))
    widths = [len(lines) if colour.all() else int(colour.argmin()) for colour in (white, black)]
    return max(widths) / len(lines)


def sharpness(image: Image.Image) -> float:
    """Deviation of the Laplacian on a copy with a short side of 256 px, in levels of 255: blurred images have little.

    Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy", take its variance.
    """
    scale = min(1.0, SHARP_SIDE_PX / min(image.size))
    small = image.convert("L").resize([max(3, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    return float(laplace(np.asarray(small, dtype=np.float64))[1:-1, 1:-1].std())


def image_hash(image: Image.Image) -> int:
    """64 bits, each whether one of 8 x 8 places is darker than its right neighbour (dHash)."""
    require("prepare", "imagehash")
    import imagehash

    return int(str(imagehash.dhash(image, 8)), 16)


def bits_apart(one: int, other: int) -> int:
    """The number of bits in which two hashes differ: 0 ... 64."""
    return (one ^ other).bit_count()
