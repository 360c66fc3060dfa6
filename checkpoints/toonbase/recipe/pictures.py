"""The rendered pictures: captions and labels from the table, pixels in memory."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def read_rows(data: Path, split: str) -> list[dict]:
    """Table => the rows of one split."""
    rows = [json.loads(line) for line in (data / "attributes.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def read_images(files: list[Path]) -> Tensor:
    """Files => uint8 [N,3,H,W]."""
    arrays = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


def to_pixels(images: Tensor) -> Tensor:
    """uint8 => [-1, 1]."""
    return images.float() / 127.5 - 1


def psnr(pixels: Tensor, reference: Tensor) -> Tensor:
    """Both in [-1, 1] => dB of each picture, after rounding to the eight bits a file would hold."""
    rounded = ((pixels.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    return -10 * torch.log10(((rounded - reference) / 2).square().flatten(1).mean(1).clamp_min(1e-8))
