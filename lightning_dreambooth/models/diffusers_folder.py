"""A model written as a diffusers folder, which `from_pretrained` loads directly."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from lightning_dreambooth.models.configs import SCHEDULER, read_config
from lightning_dreambooth.models.lora import fused
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.models.weight_files import WEIGHTS, weights_file


def save_folder(model: StableDiffusion, folder: Path, dtype: torch.dtype) -> None:
    """Writes a diffusers folder with weights of the given dtype; adapters are added to them."""
    save_configs(model, folder)
    for part in WEIGHTS:
        prefix = "text_model." if part == "text_encoder" else ""  # as in SD 1.5's files; all readers accept it
        weights = fused(getattr(model, part))
        tensors = {prefix + name: value.to("cpu", dtype).contiguous() for name, value in weights.items()}
        save_file(tensors, folder / part / weights_file(part, None), metadata={"format": "pt"})


def save_configs(model: StableDiffusion, folder: Path) -> None:
    """Writes everything of a diffusers folder but the weights."""
    for part in WEIGHTS:
        (folder / part).mkdir(parents=True)
        _write_json(folder / part / "config.json", part_config(model, part))
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(model.folder / part, folder / part)
    if not (folder / "tokenizer/merges.txt").is_file():  # transformers 5 leaves them out, other readers need them
        model.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
    _write_json(folder / "model_index.json", _index(model))


def part_config(model: StableDiffusion, part: str) -> dict[str, Any]:
    """The config of `unet`, `vae` or `text_encoder`, as its file holds it."""
    module = getattr(model, part)
    config = dict(module.config) if part != "text_encoder" else module.config.to_dict()
    config = {key: value for key, value in config.items() if key != "_name_or_path"}
    if part == "text_encoder":  # transformers loads in the dtype written here, diffusers always in fp32
        return config | {"dtype": "float32", "architectures": ["CLIPTextModel"]}
    return {"_class_name": type(module).__name__, **config}


def _index(model: StableDiffusion) -> dict[str, object]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", read_config(model.folder / SCHEDULER)["_class_name"]],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
