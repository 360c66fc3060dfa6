"""Weight files of a model's parts: names, variants, shards, fingerprints and counts."""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import sha256
from lightning_dreambooth.models.configs import read_config

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
TRAINABLE = ("unet", "text_encoder")


class Weights(NamedTuple):
    """The weight files of a part, one or several shards, and the variant that they belong to."""

    files: tuple[Path, ...]
    variant: str | None


def weights_file(part: str, variant: str | None) -> str:
    """Name of a part's weights, such as `diffusion_pytorch_model.fp16.safetensors`."""
    return ".".join(filter(None, [WEIGHTS[part], variant, "safetensors"]))


def index_file(part: str, variant: str | None) -> str:
    """Name of the list of a part's shards, such as `diffusion_pytorch_model.safetensors.index.fp16.json`."""
    return ".".join(filter(None, [WEIGHTS[part], "safetensors.index", variant, "json"]))


def find_weights(folder: Path, names: Collection[str], part: str, variant: str | None) -> Weights | None:
    """The files that the libraries read for a part: those of the variant where they exist, else the plain ones.

    Args:
        folder: Folder of the part; the list of shards lies there, if there is one.
        names: All files of the part, here or still on the hub.
        part: `unet`, `vae` or `text_encoder`.
        variant: Weight variant such as fp16.

    Raises:
        InputError: if a list of shards names anything but files beside it.
    """
    for which in dict.fromkeys([variant, None]):
        single, index = weights_file(part, which), index_file(part, which)
        # Where both exist, transformers reads the single file and diffusers reads the shards.
        for name in (single, index) if part == "text_encoder" else (index, single):
            if name in names:
                files = [name] if name == single else _shards(folder / name)
                return Weights(tuple(folder / file for file in files), which)
    return None


def _shards(index: Path) -> list[str]:
    places = read_config(index).get("weight_map")
    names = set(places.values()) if isinstance(places, dict) else set()
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise InputError(f"{index} does not list safetensors beside it; download the model again")
    return sorted(names)


def variants(names: Collection[str], part: str) -> list[str]:
    """The weight variants of a part that exist among these files."""
    pattern = re.compile(rf"{WEIGHTS[part]}\.(?:safetensors\.index\.)?([^.]+?)(?:-\d+-of-\d+)?\.(?:safetensors|json)")
    found = {match[1] for match in map(pattern.fullmatch, names) if match}
    return sorted(found - {"index"})


def check_readable(file: Path) -> None:
    """Raises InputError if a file is not safetensors, or its header does not fit its length."""
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors ({error}); download the model again") from error


def count(files: Sequence[Path]) -> int:
    """Number of parameters in weight files."""
    total = 0
    for file in files:
        with safe_open(file, framework="pt") as weights:
            total += sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total


def fingerprint(*files: Path) -> str:
    """SHA-256 of files, 16 hex digits: equal files have the same fingerprint wherever they lie."""
    return hashlib.sha256(b"".join(bytes.fromhex(sha256(file)) for file in files)).hexdigest()[:16]


def scaled_fingerprint(base: str, lora: Path, scale: float) -> str:
    """Identifies weights of a fingerprint to which the adapters of a file are added, 16 hex digits."""
    return hashlib.sha256(f"{base} {sha256(lora)} {scale:g}".encode()).hexdigest()[:16]


def save_weights(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Writes safetensors with metadata; equal content gives equal bytes.

    safetensors writes metadata in an order that changes from process to process:
    https://github.com/safetensors/safetensors/issues/584.
    """
    save_file({**tensors}, file, metadata={"format": "pt", **metadata})
    with file.open("r+b") as written:
        size = int.from_bytes(written.read(8), "little")
        header = json.loads(written.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        assert len(content) <= size
        written.seek(8)
        written.write(content.ljust(size))
