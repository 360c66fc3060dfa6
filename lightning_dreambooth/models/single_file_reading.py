"""Single files of Stable Diffusion 1.x and 2.x, which become diffusers folders in a cache.

What a file is, its header tells: names, shapes and metadata. Weights are read when everything else has been checked.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from filelock import FileLock
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from lightning_dreambooth.distributed import LOCK, LOCK_PATIENCE_SECONDS, acquire
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import check_room, remove_parts, replaced
from lightning_dreambooth.models.configs import SCHEDULER, readable_model
from lightning_dreambooth.models.known_models import VERSIONS, clip_tokenizer_files, known_configs
from lightning_dreambooth.models.original_layout import PREFIXES, Place, check_layout, places
from lightning_dreambooth.models.supported import SUPPORTED, check_supported, check_text, check_unet, check_vae
from lightning_dreambooth.models.weight_files import WEIGHTS, fingerprint, save_weights, weights_file

OWN_KEY = "lightning_dreambooth."  # before the names of configs in the metadata
TOKENIZER = "tokenizer/tokenizer.json"
CONFIGS = [*(f"{part}/config.json" for part in WEIGHTS), SCHEDULER, "tokenizer/tokenizer_config.json"]
CONVERSION = 1  # to be counted up when the same file becomes another folder
INPUT = PREFIXES["unet"] + "input_blocks.0.0.weight"
CONTEXT = PREFIXES["unet"] + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
TEXT_WITHOUT_LEVEL = "cond_stage_model.transformer."  # early files lack `text_model.` after it
# ComfyUI tells v-prediction of a file without metadata by this bias: its standard deviation is above the bound.
V_BIAS, V_BOUND = PREFIXES["unet"] + "output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09
USUAL_LAYERS = 100  # more than any of these models has
PART_NAMES = {"unet": "UNet", "vae": "VAE", "text_encoder": "text encoder"}
Weights = dict[str, tuple[Place, list[int]]]  # by name: where a weight lies, and the shape that it needs to have


class Header(NamedTuple):
    """What a safetensors file says of its tensors."""

    shapes: dict[str, list[int]]
    metadata: dict[str, str]


def as_folder(file: Path) -> Path:
    """A single file => a diffusers folder with the same weights, which is written if it is not there yet.

    The folder is named after the file's SHA-256 and lies in `$XDG_CACHE_HOME/lightning_dreambooth/single_file`.

    Raises:
        InputError: if the file is not a model of Stable Diffusion 1.x or 2.x, or lacks weights; or the disk is full.
        TrainingError: if the folder cannot be written.
    """
    header = read_header(file)
    texts = config_texts(file, header)
    weights = _all_places(file, header, texts)
    cache = cache_folder()
    folder = cache / f"{fingerprint(file)}-{CONVERSION}"
    if folder.is_dir():
        if missing := [name for name in CONFIGS if not (folder / name).is_file()]:
            raise InputError(f"{folder} lacks {missing[0]}; remove the folder, and the file is converted again")
        return folder
    lock = FileLock(cache / LOCK)
    while not acquire(lock, LOCK_PATIENCE_SECONDS):
        pass
    try:
        if not folder.is_dir():  # else another process has converted it meanwhile
            remove_parts(cache)
            check_room(cache, file.stat().st_size)
            with replaced(folder) as beside:
                _write_configs(beside, texts)
                with _about(file, beside):
                    check_supported(str(file), beside)
                print(f"{file} is converted, once, to {folder}", flush=True)
                _write_weights(beside, file, weights)
    finally:
        lock.release()
    return folder


@contextmanager
def _about(file: Path, beside: Path) -> Iterator[None]:
    """Makes an error inside the block one about the file, and not about the folder that it is to become."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(beside), str(file))) from error


def cache_folder() -> Path:
    """Where converted files lie."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "lightning_dreambooth/single_file"


def read_header(file: Path) -> Header:
    """The names, shapes and metadata of a safetensors file that is readable."""
    with safe_open(file, framework="pt") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        return Header(shapes, opened.metadata() or {})


def config_texts(file: Path, header: Header) -> dict[str, str]:
    """The configs that a file holds, or else those of Stable Diffusion 1.x or 2.x, with a tokenizer."""
    own = {name: header.metadata[OWN_KEY + name] for name in CONFIGS if OWN_KEY + name in header.metadata}
    if len(own) == len(CONFIGS):
        given = header.metadata.get(OWN_KEY + TOKENIZER)
        return own | (clip_tokenizer_files() if given is None else {TOKENIZER: given})
    width, in_channels = _inputs(header, CONTEXT, 768), _inputs(header, INPUT, 4)
    if width not in VERSIONS:
        raise InputError(
            f"{file} reads prompts {width} wide, Stable Diffusion 1.x 768 and 2.x 1024, and holds no configs; give the "
            "diffusers folder"
        )
    configs = known_configs(width, _prediction_type(file, header, width), in_channels)
    return {name: json.dumps(config, indent=2) for name, config in configs.items()} | clip_tokenizer_files()


def _inputs(header: Header, name: str, usual: int) -> int:
    """How many inputs a layer has; where it is missing, the usual number, and what is missing is told later."""
    shape = header.shapes.get(name, [])
    return shape[1] if len(shape) > 1 else usual


def _prediction_type(file: Path, header: Header, width: int) -> str:
    """What the UNet predicts, by kohya's or ComfyUI's metadata, ComfyUI's mark `v_pred`, or the bias of 2.x."""
    stated = [header.metadata.get(f"modelspec.{key}") for key in ("prediction_type", "predict_key")]
    if any(stated):
        return "v_prediction" if "v" in stated else "epsilon"
    is_v = header.metadata.get("modelspec.architecture", "").endswith("-v") or "v_pred" in header.shapes
    if width == 1024 and V_BIAS in header.shapes and not is_v:
        with safe_open(file, framework="pt") as opened:
            is_v = opened.get_tensor(V_BIAS).float().std(correction=0).item() > V_BOUND
    return "v_prediction" if is_v else "epsilon"


def _all_places(file: Path, header: Header, texts: Mapping[str, str]) -> dict[str, Weights]:
    """Where the weights of each part lie, checked against the header."""
    with readable_model(file):
        configs = {part: dict(json.loads(texts[f"{part}/config.json"])) for part in WEIGHTS}
    check_unet(str(file), configs["unet"])
    check_vae(str(file), configs["vae"], configs["unet"])
    check_text(str(file), configs["text_encoder"], configs["unet"])
    _check_counts(file, configs, len(header.shapes))
    with readable_model(file):
        modules = _without_weights(configs)
    check_layout(modules["unet"].config, modules["vae"].config)
    with readable_model(file):
        found = {part: _places(part, module, header) for part, module in modules.items()}
    for part, weights in found.items():
        _check_part(file, part, weights, header)
    return found


def _check_counts(file: Path, configs: Mapping[str, dict[str, Any]], tensors: int) -> None:
    """Raises InputError if a config has more layers than a file has tensors, which would take long to build."""
    for part, key in (("unet", "layers_per_block"), ("vae", "layers_per_block"), ("text_encoder", "num_hidden_layers")):
        count = configs[part].get(key, 1)
        if isinstance(count, int) and count > max(tensors, USUAL_LAYERS):
            raise InputError(f"{file}: {key} of its {PART_NAMES[part]} is {count:,}, but it has {tensors:,} tensors")


def _without_weights(configs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(configs["unet"]),
            "vae": AutoencoderKL.from_config(configs["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder"])),
        }


def _places(part: str, module: Any, header: Header) -> Weights:
    shapes = {name: list(value.shape) for name, value in nn.Module.state_dict(module).items()}
    config = module.config.to_dict() if part == "text_encoder" else module.config
    found = places(part, shapes, config)
    return {name: (_there(place, header), shapes[name]) for name, place in found.items()}


def _there(place: Place, header: Header) -> Place:
    early = place.name.replace(TEXT_WITHOUT_LEVEL + "text_model.", TEXT_WITHOUT_LEVEL)
    return place._replace(name=early) if place.name not in header.shapes and early in header.shapes else place


def _check_part(file: Path, part: str, weights: Weights, header: Header) -> None:
    missing = [place.name for place, _ in weights.values() if place.name not in header.shapes]
    if len(missing) == len(weights):
        raise InputError(f"{file} holds no {PART_NAMES[part]} ({missing[0]}); give a file with all parts")
    if missing:
        raise InputError(
            f"{file} lacks {len(missing)} weights of its {PART_NAMES[part]}, such as {missing[0]}; download it again"
        )
    for place, shape in weights.values():
        there = header.shapes[place.name]
        needed = shape if place.third is None else [3 * shape[0], *shape[1:]]
        if _without_ones(there) != _without_ones(needed):
            raise InputError(
                f"{file}: {place.name} has the shape {there}, {needed} is needed; {SUPPORTED}, in their usual sizes"
            )
    known = {place.name for place, _ in weights.values()}
    more = [name for name in header.shapes if name.startswith(PREFIXES["unet"]) and name not in known]
    if part == "unet" and more:
        raise InputError(f"{file}: its UNet has {len(more)} weights more, such as {more[0]}; {SUPPORTED}")


def _without_ones(shape: list[int]) -> list[int]:
    """A shape, for which a linear layer and a convolution of one pixel are the same."""
    return shape[:2] if shape[2:] == [1, 1] else shape


def _write_configs(folder: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def _write_weights(folder: Path, file: Path, weights: Mapping[str, Weights]) -> None:
    for part, found in weights.items():
        prefix = "text_model." if part == "text_encoder" else ""
        with safe_open(file, framework="pt") as opened:
            tensors = {prefix + name: _tensor(opened, place, shape) for name, (place, shape) in found.items()}
            save_weights(tensors, folder / part / weights_file(part, None), {})


def _tensor(opened: Any, place: Place, shape: list[int]) -> Tensor:
    whole: Tensor = opened.get_tensor(place.name)
    own = whole if place.third is None else whole.chunk(3)[place.third].clone()
    return own.reshape(shape)
