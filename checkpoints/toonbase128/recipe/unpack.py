"""Writes the captioned pictures as files that `lightning_dreambooth fit` reads: an image and its caption beside it.

python unpack.py --data <pictures> --out <folder> [--count 40000]
"""

import argparse
from pathlib import Path

import torch
from pictures import Pictures
from PIL import Image

PER_FOLDER = 2048


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, help="the first so many; all without it")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(args.data, "captioned")
    count = min(args.count or len(pictures), len(pictures))
    for start in range(0, count, PER_FOLDER):
        numbers = torch.arange(start, min(start + PER_FOLDER, count))
        for number, image in zip(numbers.tolist(), pictures.read(numbers), strict=True):
            path = args.out / f"{number:06d}.png"
            path.with_suffix(".txt").write_text(pictures.rows[number]["caption"])
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, compress_level=3)
    print(f"{count} pictures with captions")


if __name__ == "__main__":
    main()
