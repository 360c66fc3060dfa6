"""LoRA files: one safetensors in the key layout that diffusers, ComfyUI, kohya and AUTOMATIC1111 all read whole."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_dreambooth.files import replaced
from lightning_dreambooth.models.lora import ADAPTER, adapted

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}  # kohya's, of Stable Diffusion 1.x and 2.x


def lora_tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The adapters of parts, by the names of kohya's layout, fp32, on the CPU."""
    tensors: dict[str, Tensor] = {}
    for part, module in parts.items():
        for name, layer in adapted(module):
            key = PREFIXES[part] + name.replace(".", "_")
            down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            tensors[f"{key}.lora_down.weight"] = down
            tensors[f"{key}.lora_up.weight"] = up
            tensors[f"{key}.alpha"] = torch.tensor(float(layer.scaling[ADAPTER] * len(down)))
            if layer.use_dora[ADAPTER]:
                norms = layer.lora_magnitude_vector[ADAPTER].weight
                tensors[f"{key}.dora_scale"] = norms.reshape(len(up), *[1] * (up.ndim - 1))
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def save_lora(parts: Mapping[str, nn.Module], file: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
    """Writes the adapters of parts atomically."""
    tensors = {name: value.to(dtype) for name, value in lora_tensors(parts).items()}
    with replaced(file) as beside:
        save_file(tensors, beside, metadata={"format": "pt", **metadata})
