"""Gathers what train.py needs in one file: pictures, captions as tokens, what they say, and views of characters.

PYTHONPATH=../../toonbase/recipe python gather.py --data <pictures> --characters <views> --vae <folder> --out <file>
"""

import argparse
from pathlib import Path

import open_clip
import torch
from classifier import through_vae
from pictures import read_images, read_rows
from safetensors.torch import save_file
from torch import Tensor

MODEL = f"local-dir:{Path(__file__).parents[1]}"
RECONSTRUCTED = 0.25  # this part of the captioned pictures is also seen through the autoencoder
VIEWS = 4
PHRASES = {
    "medium": "{}",
    "gender": "{}",
    "hair": "{} hair",
    "background": "{} background",
    "glasses": "wearing glasses",
    "expression": "{}",
    "object": "{}",
    "degraded": "",  # said by every caption: those of undamaged pictures say it by silence
}


def encode_labels(rows: list[dict]) -> Tensor:
    """Rows => what each picture shows: class numbers [N,8]."""
    columns = [[str(row.get(name)) for row in rows] for name in PHRASES]
    return torch.tensor([[sorted(set(column)).index(value) for value in column] for column in columns]).T.contiguous()


def encode_said(rows: list[dict]) -> Tensor:
    """Rows => which of its labels each caption says [N,8]."""
    return torch.tensor(
        [[phrase.format(row.get(name)) in row["caption"] for name, phrase in PHRASES.items()] for row in rows]
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    for name in ("data", "characters", "vae", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    rows = read_rows(args.data, "train")
    images = read_images([args.data / row["file"] for row in rows])
    again = torch.arange(0, len(rows), round(1 / RECONSTRUCTED))
    rows += [rows[index] for index in again]
    views = read_images(sorted(args.characters.glob("*.png"))).unflatten(0, (-1, VIEWS))
    views[:, -1] = through_vae(args.vae, views[:, -1])
    tensors = {
        "images": torch.cat([images, through_vae(args.vae, images[again])]),
        "tokens": open_clip.get_tokenizer(MODEL)([row["caption"] for row in rows]),
        "labels": encode_labels(rows),
        "said": encode_said(rows),
        "views": views,
    }
    save_file(tensors, args.out)
    print({name: tuple(tensor.shape) for name, tensor in tensors.items()})


if __name__ == "__main__":
    main()
