"""Layouts of LoRA files: what is in a file, whoever wrote it, as names and tensors that diffusers reads rightly."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import check_regular

# One such key for each adapted layer: kohya's, diffusers' old ones, PEFT's.
DOWN = re.compile(r"(.+)\.(?:lora_down|lora_A|lora_linear_layer\.down|lora\.down)\.weight|(.+)_lora\.down\.weight")
UP = {"lora_down": "lora_up", "lora_A": "lora_B", "down": "up"}
KOHYA = ("lora_unet_", "lora_te_", "lora_te1_")
DIFFUSERS = ("unet.", "text_encoder.")
METADATA = "lora_adapter_metadata"  # where diffusers writes rank and alpha
UNREAD = {  # part of a key, and what it tells of
    "hada_": "a LoHa (LyCORIS)", "lokr_": "a LoKr (LyCORIS)", "dora_scale": "a DoRA in kohya's layout",
    "lora_te2_": "a LoRA of Stable Diffusion XL", "text_encoder_2": "a LoRA of Stable Diffusion XL",
    "lora_mid": "a LoRA with a third matrix (CP decomposition)", "lora_B.bias": "a LoRA with biases",
}  # fmt: skip


class LoraTensors(NamedTuple):
    """The content of a LoRA file, with an alpha that is everywhere the rank.

    Attributes:
        tensors: A, B and norms by name, in kohya's or in diffusers' layout, without alphas.
        layers: Number of adapted layers.
    """

    tensors: dict[str, Tensor]
    layers: int


def read_tensors(file: Path) -> LoraTensors:
    """Reads a LoRA file of any layout that is known; B is multiplied by alpha over rank.

    diffusers would mistake alphas that differ between layers, and leave out those in its own metadata.

    Raises:
        InputError: if it is not safetensors, holds no LoRA, or one of a kind that is not read.
    """
    check_regular(file)
    try:
        with safe_open(file, framework="pt") as opened:
            found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors ({error}); give a LoRA file") from error
    tensors = _of_one_layout(file, found)
    alphas = _alphas(file, tensors, metadata)
    layers = 0
    for name in [*tensors]:
        if match := DOWN.fullmatch(name):
            layers += 1
            up = _up(name)
            if up not in tensors:
                raise InputError(f"{file} lacks {up}; download it again")
            if (alpha := alphas.get(match[1] or match[2])) is not None:
                tensors[up] = tensors[up].float() * (alpha / tensors[name].shape[0])
    # transformers does not take the norms of a DoRA without the last word, which PEFT leaves out.
    named = {re.sub(r"(lora_magnitude_vector)$", r"\1.weight", name): tensors[name] for name in tensors}
    return LoraTensors({name: value for name, value in named.items() if not name.endswith(".alpha")}, layers)


def _of_one_layout(file: Path, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the adapters, without others, such as embeddings, that lie in the same file."""
    for mark, kind in UNREAD.items():
        if any(mark in name for name in found):
            raise InputError(f"{file} is {kind}, which is not read; give a LoRA in the layout of kohya or diffusers")
    if not any(DOWN.fullmatch(name) for name in found):
        raise InputError(f"{file} holds no LoRA, whose keys have lora_down or lora_A; a model goes to model.pretrained")
    by_layout = [_starting(prefixes, found) for prefixes in (KOHYA, DIFFUSERS)]
    if not any(by_layout):
        example = next(name for name in found if DOWN.fullmatch(name))
        raise InputError(f"{file} is in an unknown layout ({example}); give a LoRA in the layout of kohya or diffusers")
    if all(by_layout):
        raise InputError(f"{file} mixes the layouts of kohya and diffusers; give one of them")
    return by_layout[0] or by_layout[1]


def _starting(prefixes: tuple[str, ...], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if name.startswith(prefixes)}


def _up(down: str) -> str:
    for ours, other in UP.items():
        down = re.sub(rf"\b{ours}(?=\.weight$)", other, down)
    return down


def _alphas(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, float]:
    """Alpha of each layer that states one, by the name of its matrices before `lora`."""
    stated = {name.removesuffix(".alpha"): value.item() for name, value in tensors.items() if name.endswith(".alpha")}
    if METADATA not in metadata:
        return stated
    try:
        settings: dict[str, Any] = dict(json.loads(metadata[METADATA]))
        layers = [match[1] for match in map(DOWN.fullmatch, tensors) if match and match[1]]
        return stated | {layer: _alpha(layer, settings) for layer in layers}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file}: its {METADATA} cannot be read ({error!r}); save it again") from error


def _alpha(layer: str, settings: Mapping[str, Any]) -> float:
    """The factor of a layer times its rank, from PEFT's settings of the part it is in."""
    part, _, name = layer.partition(".")
    name = name.removeprefix("text_model.")

    def of_layer(key: str, pattern: str) -> float:
        return float(_matching(name, settings.get(f"{part}.{pattern}") or {}, settings[f"{part}.{key}"]))

    alpha, rank = of_layer("lora_alpha", "alpha_pattern"), of_layer("r", "rank_pattern")
    return alpha * rank**0.5 if settings.get(f"{part}.use_rslora") else alpha


def _matching(name: str, patterns: Mapping[str, Any], usual: Any) -> Any:
    """The value of the first pattern that is a layer's name or its end, as PEFT reads patterns."""
    return next((patterns[each] for each in patterns if _ends(name, each)), usual)


def _ends(name: str, pattern: str) -> bool:
    own = pattern.removeprefix("^").removeprefix("text_model.")
    return name == own or name.endswith(f".{own}")
