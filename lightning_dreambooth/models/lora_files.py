"""LoRA files: one safetensors in the key layout that diffusers, ComfyUI, kohya and AUTOMATIC1111 all read whole."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_dreambooth.errors import InputError
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


DOWN = re.compile(r"lora[_.](down|A)\b|lora_linear_layer\.down")  # one such key for each adapted layer, in any layout


def read_lora(parts: Mapping[str, nn.Module], file: Path) -> None:
    """Puts the adapters of a LoRA file into parts that have none; layouts of kohya, diffusers and PEFT are read.

    Raises:
        InputError: if it is no LoRA in safetensors, or not of this base.
    """
    layers = count_layers(file)
    options = {"adapter_name": ADAPTER, "low_cpu_mem_usage": False}
    try:
        tensors, alphas, *_ = Loader.lora_state_dict(str(file), use_safetensors=True)
        Loader.load_lora_into_unet(tensors, alphas, parts["unet"], **options)
        Loader.load_lora_into_text_encoder(tensors, alphas, parts["text_encoder"], **options)
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{file} does not fit this base model ({str(error).splitlines()[0]})") from error
    read = sum(1 for part in parts.values() for _ in adapted(part))
    if read != layers:
        raise InputError(f"{file} adapts {layers} layers, of which this base model has {read}; give the base it is for")


def count_layers(file: Path) -> int:
    """How many layers a LoRA file adapts.

    Raises:
        InputError: if it is not safetensors, or holds no LoRA.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors ({error})") from error
    layers = sum(bool(DOWN.search(name)) for name in names)
    if not layers:
        raise InputError(f"{file} holds no LoRA, whose keys end in lora_down or lora_A; give it as model.pretrained?")
    return layers
