"""Checks of encoder files: completeness, known names, and no code to run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip

from lightning_dreambooth.errors import InputError

SUFFIX = ".safetensors"


@contextmanager
def readable_encoder(name: str) -> Iterator[None]:
    """Turns any error of the libraries about broken files into an InputError."""
    try:
        yield
    except Exception as error:  # libraries may raise anything for broken files
        raise InputError(f"{name} cannot be loaded as an encoder ({' '.join(str(error).split())[:300]})") from error


def check_files(folder: Path, config: str) -> None:
    """Raises InputError if a folder lacks its config or its weights."""
    if not (folder / config).is_file() or not list(folder.glob(f"*{SUFFIX}")):
        raise InputError(f"{folder} must hold {config} and weights in safetensors to be an encoder")


def check_clip_folder(folder: Path, pretrained: str | None) -> None:
    """Raises InputError if a folder does not hold a CLIP model, or its config requests code to run."""
    if pretrained is not None:
        raise InputError(f"fidelity.clip_pretrained {pretrained} is given, but {folder} has weights of its own")
    check_files(folder, "open_clip_config.json")
    for config in folder.glob("*.json"):  # open_clip passes its entries to transformers, which would run the code
        if "trust_remote_code" in config.read_text(encoding="utf-8", errors="replace"):
            raise InputError(f"{config} requests to run code that lies beside it; use another encoder")


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
