"""The rendered pictures: labels, and pixels that stay on disk until they are asked for."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE_PX = 128


class Pictures:
    """Some sets of packed shards as one list of images, uint8 [3,128,128] each."""

    def __init__(self, folder: Path, *sets: str) -> None:
        files = [file for name in sets for file in sorted(folder.glob(f"{name}-*.rgb"))]
        if not files:
            raise SystemExit(f"{folder} holds no shard of {', '.join(sets)}: run `node render.mjs {folder}` first.")
        self.shards = [np.memmap(file, np.uint8, "r").reshape(-1, SIZE_PX, SIZE_PX, 3) for file in files]
        self.rows = [json.loads(line) for file in files for line in file.with_suffix(".jsonl").open()]
        self.starts = np.cumsum([0, *map(len, self.shards)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, indices: Tensor) -> Tensor:
        """Numbers => uint8 [N,3,128,128]."""
        images = []
        for index in indices.tolist():
            shard = int(np.searchsorted(self.starts, index, "right")) - 1
            images.append(self.shards[shard][index - self.starts[shard]])
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def draw(self, count: int) -> Tensor:
        """A random batch, uint8 [count,3,128,128]."""
        return self.read(torch.randint(len(self), (count,)))


def read_files(folder: Path) -> Tensor:
    """A folder of image files => uint8 [N,3,128,128], reduced as the datamodule reduces them."""
    images = []
    for file in sorted(folder.glob("*.png")):
        with Image.open(file) as image:
            square = image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)
        images.append(np.asarray(square))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 => [-1, 1], laid out for convolutions."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def psnr(pixels: Tensor, reference: Tensor) -> Tensor:
    """Both in [-1, 1] => dB of each image, after rounding to the eight bits a file would hold."""
    rounded = ((pixels.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    return -10 * torch.log10(((rounded - reference) / 2).square().flatten(1).mean(1).clamp_min(1e-8))
