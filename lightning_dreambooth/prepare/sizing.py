"""Square crops of any size => images of the training resolution."""

from typing import Literal

from PIL import Image

from lightning_dreambooth.prepare.waifu2x import Kind, Waifu2x

Upscaler = Literal["anime", "photo", "lanczos"]
MAX_DOUBLINGS = 2  # what is smaller than a quarter of the resolution is not made of more than that


class Resizer:
    """Brings squares to one size: large ones shrink, small ones are doubled by Waifu2x until they are large enough.

    Args:
        size_px: Side of the results.
        upscaler: What enlarges; `lanczos` for plain interpolation.
        noise: How much of JPEG's noise the first doubling takes out, -1 ... 3.
    """

    def __init__(self, size_px: int, upscaler: Upscaler, noise: int) -> None:
        self.size_px = size_px
        kind: Kind | None = None if upscaler == "lanczos" else upscaler
        self._doublers = [Waifu2x(kind, noise), *[Waifu2x(kind, -1)] * (MAX_DOUBLINGS - 1)] if kind else []

    def doublings(self, side_px: int) -> int:
        """How often a square of this side is doubled."""
        times = 0
        while side_px << times < self.size_px and times < len(self._doublers):
            times += 1
        return times

    def resize(self, square: Image.Image) -> Image.Image:
        """A square RGB image => one of the size."""
        for doubler in self._doublers[: self.doublings(square.width)]:
            square = doubler.double(square)
        return square.resize((self.size_px, self.size_px), Image.Resampling.LANCZOS)
