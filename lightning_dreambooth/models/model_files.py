"""Files of a model before it is loaded: location, download, completeness, configs and fingerprints."""

from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import expand, expand_given
from lightning_dreambooth.models.configs import SCHEDULER, read_config
from lightning_dreambooth.models.hub import fetch, names_here, names_there, open_folder
from lightning_dreambooth.models.single_file_reading import as_folder
from lightning_dreambooth.models.supported import (
    check_is_folder,
    check_kind,
    check_supported,
    check_vae,
    is_single_file,
)
from lightning_dreambooth.models.weight_files import (
    TRAINABLE,
    WEIGHTS,
    Weights,
    check_readable,
    count,
    find_weights,
    fingerprint,
    scaled_fingerprint,
    variants,
    weights_file,
)

CONFIGS = ["tokenizer/tokenizer_config.json", SCHEDULER, *(f"{part}/config.json" for part in WEIGHTS)]


def locate(pretrained: str, revision: str | None = None, variant: str | None = None) -> Path:
    """A hub id, folder or single file => the local folder with all five parts.

    Weights are downloaded last, and only safetensors.

    Raises:
        InputError: if it is neither a hub id nor a folder or single file, a part is missing, or it is another kind of
            model.
    """
    if is_single_file(pretrained):
        pretrained = str(as_folder(Path(pretrained)))
    check_is_folder(pretrained)
    folder = open_folder(pretrained, revision)
    names = names_here(folder)
    found = _find_all(folder, names, variant)
    if any(weights is None or weights.variant != variant for weights in found.values()):
        names = names_there(pretrained, folder)
        found = _find_all(folder, names, variant)
    check_kind(pretrained, folder, names)
    others = {name for part in WEIGHTS for name in variants(_inside(f"{part}/", names), part)}
    missing = [f"{part}/{weights_file(part, None)}" for part in WEIGHTS if not found[part]]
    missing_configs = [name for name in CONFIGS if name not in names]
    if missing_configs:
        raise _lacks(pretrained, missing_configs + missing, others)
    check_supported(pretrained, folder)
    if missing:
        raise _lacks(pretrained, missing, others)
    weights = [part_weights for part_weights in found.values() if part_weights]
    if variant not in {None, *(part_weights.variant for part_weights in weights)}:
        raise InputError(f"{pretrained} has no weights of the variant {variant}; {_remedy(others)}")
    _get(pretrained, folder, weights)
    return folder


def locate_vae(vae: str, unet: dict[str, Any]) -> Path:
    """A hub id or folder of a VAE, or the folder of a whole model => the folder with the VAE's config and weights.

    Raises:
        InputError: if it is neither a hub id nor a folder, a file is missing, or its latents are not those that a UNet
            with the config `unet` reads.
    """
    check_is_folder(vae)
    folder = open_folder(vae, None)
    prefix = "vae/" if (folder / "vae/config.json").is_file() else ""

    def find(names: Collection[str]) -> Weights | None:
        return find_weights(folder / prefix, _inside(prefix, names), "vae", None)

    weights = find(names_here(folder)) or find(names_there(vae, folder))
    if weights is None or not (folder / prefix / "config.json").is_file():
        raise _lacks(vae, ["config.json", weights_file("vae", None)], [])
    check_vae(vae, read_config(folder / prefix / "config.json"), unet)
    _get(vae, folder, [weights])
    return folder / prefix


def _find_all(folder: Path, names: Collection[str], variant: str | None) -> dict[str, Weights | None]:
    return {part: find_weights(folder / part, _inside(f"{part}/", names), part, variant) for part in WEIGHTS}


def _inside(prefix: str, names: Collection[str]) -> set[str]:
    """The files of a part, of all those of a model."""
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _get(name: str, folder: Path, weights: Iterable[Weights]) -> None:
    files = [file for part_weights in weights for file in part_weights.files]
    fetch(name, folder, files)
    for file in files:
        check_readable(file)


def _lacks(name: str, missing: Iterable[str], others: Collection[str]) -> InputError:
    remedy = f" ({_remedy(others)})" if others else ""
    return InputError(
        f"{name} lacks {', '.join(missing)}; a diffusers folder with safetensors weights is needed{remedy}"
    )


def _remedy(others: Collection[str]) -> str:
    return f"model.variant may be {' or '.join(sorted(others))}" if others else "leave model.variant out"


class ModelFiles:
    """The files of a model, located or downloaded when they are first needed.

    Args:
        pretrained: Hub id or folder of the model, in diffusers' layout; or a single safetensors file.
        vae: Hub id or folder of a VAE that replaces the model's.
        revision: Git revision of a hub model.
        variant: Weight variant such as fp16.
        lora: LoRA file whose adapters are added to the weights.
        lora_scale: Factor of what they add.
    """

    def __init__(
        self, pretrained: str, vae: str | None = None, revision: str | None = None, variant: str | None = None,
        lora: Path | None = None, lora_scale: float = 1.0,
    ) -> None:  # fmt: skip
        self.pretrained = expand(pretrained)
        self.vae = expand_given(vae)
        self.revision = revision
        self.variant = variant
        self.lora = lora
        self.lora_scale = lora_scale

    def with_lora(self, lora: Path, scale: float) -> "ModelFiles":
        """The same model with the adapters of a LoRA file."""
        return ModelFiles(self.pretrained, self.vae, self.revision, self.variant, lora, scale)

    @property
    def name(self) -> str:
        """What a person calls the model: its hub id or folder and, if there is one, its LoRA."""
        return f"{self.pretrained} with {self.lora.name} at {self.lora_scale:g}" if self.lora else self.pretrained

    @cached_property
    def folder(self) -> Path:
        """Local folder of the model."""
        return locate(self.pretrained, self.revision, self.variant)

    @cached_property
    def vae_folder(self) -> Path:
        """Local folder of the VAE."""
        return self.folder / "vae" if self.vae is None else locate_vae(self.vae, self._config("unet"))

    def weights(self, part: str) -> Weights:
        """The weight files of a part; a VAE that replaces the model's has no variant."""
        folder = self._part_folder(part)
        names = {path.name for path in folder.iterdir()}
        found = find_weights(folder, names, part, None if part == "vae" and self.vae is not None else self.variant)
        if found is None:
            raise _lacks(str(folder), [weights_file(part, None)], variants(names, part))
        return found

    def _part_folder(self, part: str) -> Path:
        return self.vae_folder if part == "vae" else self.folder / part

    def _config(self, part: str) -> dict[str, Any]:
        return read_config(self._part_folder(part) / "config.json")

    @cached_property
    def vae_factor(self) -> int:
        """Pixels per latent along one side of an image."""
        return int(2 ** (len(self._value("vae", "block_out_channels", list)) - 1))

    @cached_property
    def native_resolution_px(self) -> int:
        """Side in px of the images that the model was trained on."""
        return int(self._value("unet", "sample_size", int)) * self.vae_factor

    def _value(self, part: str, key: str, kind: type) -> Any:
        value = self._config(part).get(key)
        if not isinstance(value, kind) or not value:
            file = self._part_folder(part) / "config.json"
            raise InputError(f"{file}: {key} is {value!r}, must be of type {kind.__name__}; download the model again")
        return value

    @property
    def _files(self) -> list[Path]:
        return [file for part in (*TRAINABLE, "vae") for file in self.weights(part).files]

    @property
    def fingerprint(self) -> str:
        """Identifies the weights, 16 hex digits: class images and states record it."""
        base = fingerprint(*self._files)
        return scaled_fingerprint(base, self.lora, self.lora_scale) if self.lora else base

    @property
    def parameters(self) -> int:
        """Number of parameters of UNet, text encoder and VAE."""
        return count(self._files)

    @property
    def vae_fingerprint(self) -> str:
        """Identifies the VAE with its config, 16 hex digits."""
        return fingerprint(*self.weights("vae").files, self.vae_folder / "config.json")
