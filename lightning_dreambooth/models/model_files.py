"""Files of a model before it is loaded: location, download, completeness, configs and fingerprints."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import sha256
from lightning_dreambooth.inputs import expand, expand_given

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
TRAINABLE = ("unet", "text_encoder")
PREDICTION_TYPES = ("epsilon", "v_prediction")


@contextmanager
def readable_model(folder: Path) -> Iterator[None]:
    """Turns whatever the libraries raise for broken or hostile files into an InputError."""
    try:
        yield
    except Exception as error:  # it can be anything
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder} cannot be loaded as a model ({reason}); download it again") from error


def weights_file(part: str, variant: str | None) -> str:
    """Name of a part's weights, such as `diffusion_pytorch_model.fp16.safetensors`."""
    return ".".join(filter(None, [WEIGHTS[part], variant, "safetensors"]))


def locate(pretrained: str, revision: str | None = None, variant: str | None = None) -> Path:
    """A hub id or folder => the local folder with all five parts. Downloads only safetensors and plain text.

    Raises:
        InputError: if it is neither a hub id nor a folder, or a part is missing.
    """
    folder = Path(pretrained)
    if not folder.is_dir():
        weights = [f"{part}/{weights_file(part, variant)}" for part in WEIGHTS]
        folder = _download(pretrained, revision, ["model_index.json", "*/*.json", "*/merges.txt", *weights])
    scheduler = "scheduler/scheduler_config.json"
    required = ["tokenizer/tokenizer_config.json", scheduler]
    required += [f"{part}/{name}" for part in WEIGHTS for name in ("config.json", weights_file(part, variant))]
    _check_complete(folder, required, pretrained)
    prediction_type = read_config(folder / scheduler).get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise InputError(f"{pretrained} predicts {prediction_type!r}; supported are {', '.join(PREDICTION_TYPES)}")
    return folder


def locate_vae(vae: str) -> Path:
    """A hub id or folder of a VAE, or the folder of a whole model => the folder with the VAE's config and weights."""
    folder = Path(vae)
    if not folder.is_dir():
        folder = _download(vae, None, ["config.json", weights_file("vae", None)])
    if (folder / "vae").is_dir():
        folder = folder / "vae"
    return _check_complete(folder, ["config.json", weights_file("vae", None)], vae)


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{name} is neither a local folder nor a model that the hub provides: {reason}") from error


def _check_complete(folder: Path, required: list[str], name: str) -> Path:
    missing = [file for file in required if not (folder / file).is_file()]
    if missing:
        raise InputError(f"{name} lacks {', '.join(missing)}; a diffusers folder with safetensors weights is needed")
    for file in required:
        if file.endswith(".json"):
            read_config(folder / file)
        else:
            _check_weights(folder / file)
    return folder


def read_config(file: Path) -> dict[str, Any]:
    """A config file => its entries.

    Raises:
        InputError: if it does not hold a JSON object.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is not a JSON object ({error}); download the model again") from error


def _check_weights(file: Path) -> None:
    try:
        with safe_open(file, framework="pt"):  # reads the header and compares it with the file's length
            pass
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors ({error}); download the model again") from error


def _count(file: Path) -> int:
    with safe_open(file, framework="pt") as weights:
        return sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


class ModelFiles:
    """The files of a model, located or downloaded when they are first needed.

    Args:
        pretrained: Hub id or folder of the model, in diffusers' layout.
        vae: Hub id or folder of a VAE that replaces the model's.
        revision: Git revision of a hub model.
        variant: Weight variant such as fp16.
    """

    def __init__(
        self, pretrained: str, vae: str | None = None, revision: str | None = None, variant: str | None = None
    ) -> None:
        self.pretrained = expand(pretrained)
        self.vae = expand_given(vae)
        self.revision = revision
        self.variant = variant

    @cached_property
    def folder(self) -> Path:
        """Local folder of the model."""
        return locate(self.pretrained, self.revision, self.variant)

    @cached_property
    def vae_folder(self) -> Path:
        """Local folder of the VAE."""
        return self.folder / "vae" if self.vae is None else locate_vae(self.vae)

    @property
    def vae_variant(self) -> str | None:
        """Weight variant of the VAE; a VAE that replaces the model's has none."""
        return self.variant if self.vae is None else None

    @property
    def _vae_file(self) -> Path:
        return self.vae_folder / weights_file("vae", self.vae_variant)

    @cached_property
    def vae_factor(self) -> int:
        """Pixels per latent along one side of an image."""
        return int(2 ** (len(self._value("vae", "block_out_channels", list)) - 1))

    @cached_property
    def native_resolution_px(self) -> int:
        """Side in px of the images that the model was trained on."""
        return int(self._value("unet", "sample_size", int)) * self.vae_factor

    def _value(self, part: str, key: str, kind: type) -> Any:
        file = (self.vae_folder if part == "vae" else self.folder / part) / "config.json"
        value = read_config(file).get(key)
        if not isinstance(value, kind) or not value:
            raise InputError(f"{file}: {key} is {value!r}, must be of type {kind.__name__}; download the model again")
        return value

    @property
    def fingerprint(self) -> str:
        """Identifies the weights, 16 hex digits: class images and states record it."""
        parts = [self.folder / part / weights_file(part, self.variant) for part in TRAINABLE]
        return fingerprint(*parts, self._vae_file)

    @property
    def parameters(self) -> int:
        """Number of parameters of UNet, text encoder and VAE."""
        parts = [self.folder / part / weights_file(part, self.variant) for part in TRAINABLE]
        return sum(map(_count, [*parts, self._vae_file]))

    @property
    def vae_fingerprint(self) -> str:
        """Identifies the VAE with its config, 16 hex digits."""
        return fingerprint(self._vae_file, self.vae_folder / "config.json")


def fingerprint(*files: Path) -> str:
    """SHA-256 of files, 16 hex digits: equal files have the same fingerprint wherever they lie."""
    return hashlib.sha256(b"".join(bytes.fromhex(sha256(file)) for file in files)).hexdigest()[:16]
