"""Where a model's files lie, whether they are all there, and what their configs say, before any weight is loaded."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from lightning_dreambooth.errors import InputError

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PREDICTION_TYPES = ("epsilon", "v_prediction")


def weights_file(part: str, variant: str | None) -> str:
    """Name of a part's weights, such as `diffusion_pytorch_model.fp16.safetensors`."""
    return ".".join(filter(None, [WEIGHTS[part], variant, "safetensors"]))


def locate(pretrained: str, revision: str | None = None, variant: str | None = None) -> Path:
    """A hub id or folder => the local folder with all five parts; downloads safetensors and plain text only.

    Raises:
        InputError: if it is neither, or a part is missing.
    """
    folder = Path(pretrained)
    if not folder.is_dir():
        weights = [f"{part}/{weights_file(part, variant)}" for part in WEIGHTS]
        folder = _download(pretrained, revision, ["model_index.json", "*/*.json", "*/merges.txt", *weights])
    wanted = ["tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"]
    wanted += [f"{part}/{name}" for part in WEIGHTS for name in ("config.json", weights_file(part, variant))]
    _complete(folder, wanted, pretrained)
    kind = json.loads((folder / wanted[1]).read_text(encoding="utf-8")).get("prediction_type", "epsilon")
    if kind not in PREDICTION_TYPES:
        raise InputError(f"{pretrained} predicts {kind!r}; can be trained: {', '.join(PREDICTION_TYPES)}")
    return folder


def locate_vae(vae: str) -> Path:
    """A hub id or folder of a VAE, or the folder of a whole model => the folder with the VAE's config and weights."""
    folder = Path(vae)
    if not folder.is_dir():
        folder = _download(vae, None, ["config.json", weights_file("vae", None)])
    if (folder / "vae").is_dir():
        folder = folder / "vae"
    return _complete(folder, ["config.json", weights_file("vae", None)], vae)


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{name} is neither a folder here nor a model that the hub gives: {reason}") from error


def _complete(folder: Path, wanted: list[str], name: str) -> Path:
    missing = [file for file in wanted if not (folder / file).is_file()]
    if missing:
        raise InputError(f"{name} lacks {', '.join(missing)}; a diffusers folder with safetensors weights is needed")
    return folder


def vae_factor(vae_folder: Path) -> int:
    """How many pixels of a side one latent stands for, read from the VAE's config."""
    config = json.loads((vae_folder / "config.json").read_text(encoding="utf-8"))
    return int(2 ** (len(config["block_out_channels"]) - 1))


def native_resolution(folder: Path, vae_folder: Path) -> int:
    """Side in px of the pictures that a model was made for, read from its configs."""
    config = json.loads((folder / "unet" / "config.json").read_text(encoding="utf-8"))
    return int(config["sample_size"]) * vae_factor(vae_folder)


@lru_cache
def fingerprint(*files: Path) -> str:
    """SHA-256 of weight files, 16 hex digits: the same weights give the same word wherever they lie."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
