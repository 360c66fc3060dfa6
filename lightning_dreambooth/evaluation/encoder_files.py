"""Checks of encoder files: completeness, known names, and no code to run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
from transformers import dynamic_module_utils

from lightning_dreambooth.errors import InputError

SUFFIX = ".safetensors"
PICKLED = (".bin", ".pth", ".pth.tar")  # what open_clip and timm read besides
# Keys by which transformers runs code that lies beside a config, or that it downloads.
CODE = {"auto_map", "trust_remote_code", "attn_implementation", "_attn_implementation"}

# open_clip calls transformers without `trust_remote_code`; at 0 it refuses, else it asks on stdin for so many seconds.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


@contextmanager
def readable_encoder(name: str) -> Iterator[None]:
    """Turns any error of the libraries about broken files into an InputError."""
    try:
        yield
    except Exception as error:  # libraries may raise anything for broken files
        raise InputError(f"{name} cannot be loaded as an encoder ({' '.join(str(error).split())[:300]})") from error


def check_files(folder: Path, config: str, weights: str) -> None:
    """Checks a folder before a library reads it.

    Args:
        folder: Folder of the encoder.
        config: Name of its config.
        weights: Name of the weights that the library prefers to all others.

    Raises:
        InputError: if it lacks its config or weights in safetensors, holds pickled weights that the library may read
            instead, or requests to run code.
    """
    if not (folder / config).is_file() or not list(folder.glob(f"*{SUFFIX}")):
        raise InputError(f"{folder} must hold {config} and weights in safetensors to be an encoder")
    pickled = [path.name for suffix in PICKLED for path in folder.glob(f"*{suffix}")]
    if pickled and not (folder / weights).is_file():
        raise InputError(
            f"{folder} holds pickled weights ({pickled[0]}); remove them, or name the safetensors {weights}"
        )
    for file in folder.glob("*.json"):
        if asked := CODE & set(_keys(file)):
            raise InputError(f"{file} requests to run code ({', '.join(sorted(asked))}); use another encoder")


def _keys(file: Path) -> Iterator[str]:
    """Every key of a JSON file, at any depth, however it is written."""
    try:
        left = [json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON ({error}); download the encoder again") from error
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield from value
            left += value.values()
        elif isinstance(value, list):
            left += value


def check_clip_folder(folder: Path, pretrained: str | None) -> None:
    """Raises InputError if a folder does not hold a CLIP model that can be read safely."""
    if pretrained is not None:
        raise InputError(f"fidelity.clip_pretrained {pretrained} is given, but {folder} has weights of its own")
    check_files(folder, "open_clip_config.json", "open_clip_model.safetensors")


def check_clip_name(model: str, pretrained: str | None) -> None:
    """Raises InputError if open_clip has no model of that name, or no weights under that tag or file."""
    if model not in open_clip.list_models():
        raise InputError(f"fidelity.clip_model {model} is neither a local folder nor a model of open_clip")
    tags = open_clip.list_pretrained_tags_by_model(model)
    is_file = pretrained is not None and pretrained.endswith(SUFFIX) and Path(pretrained).is_file()
    if not is_file and pretrained not in tags:
        raise InputError(
            f"fidelity.clip_pretrained {pretrained} is neither a local {SUFFIX} file nor a tag of {model}; "
            f"known are {', '.join(tags)}"
        )
