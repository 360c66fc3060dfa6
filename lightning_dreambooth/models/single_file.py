"""A model written as one safetensors file in the original layout, which ComfyUI, AUTOMATIC1111 and kohya read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dreambooth.files import replaced
from lightning_dreambooth.models.configs import SCHEDULER, read_config
from lightning_dreambooth.models.diffusers_folder import part_config
from lightning_dreambooth.models.known_models import clip_vocabulary
from lightning_dreambooth.models.lora import fused
from lightning_dreambooth.models.original_layout import check_layout, is_openclip, places
from lightning_dreambooth.models.single_file_reading import OWN_KEY, TOKENIZER
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.models.weight_files import WEIGHTS, save_weights

TOKENIZER_CONFIG = "tokenizer/tokenizer_config.json"
PLACES_ON_DISK = {"name_or_path", "tokenizer_file", "special_tokens_map_file"}  # of whoever made the tokenizer
# By whether the text encoder is OpenCLIP's, and by what the UNet predicts.
ARCHITECTURES = {
    (False, "epsilon"): "stable-diffusion-v1", (False, "v_prediction"): "stable-diffusion-v1",
    (True, "epsilon"): "stable-diffusion-v2-512", (True, "v_prediction"): "stable-diffusion-v2-768-v",
}  # fmt: skip


def single_file_tensors(unet: nn.Module, vae: nn.Module, text_encoder: nn.Module) -> dict[str, Tensor]:
    """The weights of a model, adapters added, by their names and in their shapes of the original layout, on the CPU.

    Raises:
        InputError: if the original layout has no names for the blocks of the UNet or VAE.
    """
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    check_layout(parts["unet"].config, parts["vae"].config)
    tensors: dict[str, Tensor] = {}
    for part, module in parts.items():
        weights = fused(module)
        config = module.config.to_dict() if part == "text_encoder" else module.config
        joined: dict[str, dict[int, Tensor]] = {}
        for name, (original, third) in places(part, weights, config).items():
            joined.setdefault(original, {})[third or 0] = weights[name]
        for name, thirds in joined.items():
            whole = torch.cat([thirds[number] for number in sorted(thirds)]) if len(thirds) > 1 else thirds[0]
            # The VAE's attention consists of convolutions there.
            tensors[name] = whole[:, :, None, None] if ".attn_1." in name and whole.ndim == 2 else whole
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def check_has_names(model: StableDiffusion) -> None:
    """Raises InputError if the original layout has no names for the blocks of a model's UNet or VAE."""
    check_layout(model.unet.config, model.vae.config)


def save_single_file(
    model: StableDiffusion, file: Path, dtype: torch.dtype, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a model atomically as one safetensors file; equal models give equal bytes.

    Args:
        model: The model; adapters are added to its weights.
        file: The file, which ends in `.safetensors`.
        dtype: Of the weights in the file.
        metadata: Further entries, such as `modelspec.title`, which is else the name of the file.

    Raises:
        InputError: if the original layout has no names for the blocks of the UNet or VAE.
        TrainingError: if writing fails; a file that was there is then as it was before.
    """
    tensors = single_file_tensors(model.unet, model.vae, model.text_encoder)
    described = {"modelspec.title": file.stem, **single_file_metadata(model), **(metadata or {})}
    with replaced(file) as beside:
        save_weights({name: value.to(dtype) for name, value in tensors.items()}, beside, described)


def single_file_metadata(model: StableDiffusion) -> dict[str, str]:
    """What a file says of its model: the entries of https://github.com/Stability-AI/ModelSpec, and the configs.

    The original layout has no place for configs. Without them, what is not usual would be lost: sizes, the VAE's
    scaling factor, the noise schedule. CLIP's own tokenizer is left out.
    """
    pixels_per_latent = 2 ** (len(model.vae.config.block_out_channels) - 1)
    side = model.unet.config.sample_size * pixels_per_latent
    return {
        **modelspec(model, side),
        **{OWN_KEY + name: text for name, text in _configs(model).items()},
    }


def modelspec(model: StableDiffusion, side_px: int) -> dict[str, str]:
    """The entries of ModelSpec 1.0.0 for a model that draws squares of a side."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURES[
            is_openclip(model.text_encoder.config.to_dict()), model.prediction_type
        ],
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": f"{side_px}x{side_px}",
        "modelspec.prediction_type": model.prediction_type.removesuffix("_prediction"),
    }


def _configs(model: StableDiffusion) -> dict[str, str]:
    configs = {f"{part}/config.json": part_config(model, part) for part in WEIGHTS}
    configs[SCHEDULER] = read_config(model.folder / SCHEDULER)
    tokens = read_config(model.folder / TOKENIZER_CONFIG)
    configs[TOKENIZER_CONFIG] = {key: value for key, value in tokens.items() if key not in PLACES_ON_DISK}
    texts = {name: json.dumps(config, sort_keys=True, default=str) for name, config in configs.items()}
    if model.tokenizer.get_vocab() != clip_vocabulary()[0]:
        texts[TOKENIZER] = model.tokenizer.backend_tokenizer.to_str()
    return texts
