"""LoRA files: one safetensors in the key layout that diffusers, ComfyUI, kohya and AUTOMATIC1111 all read whole."""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from diffusers.utils import logging
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import replaced
from lightning_dreambooth.inputs import check_regular
from lightning_dreambooth.models.configs import read_config
from lightning_dreambooth.models.lora import ADAPTER, adapted
from lightning_dreambooth.models.weight_files import save_weights

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}  # its prefixes of Stable Diffusion 1.x and 2.x
PEFT = {"unet": "unet.", "text_encoder": "text_encoder.text_model."}
# One such key for each adapted layer, in any layout.
DOWN = re.compile(r"lora[_.](down|A)\b|lora_linear_layer\.down")
REMEDY = "give the base it was trained on"
KOHYA_DORA = ".dora_scale"  # which diffusers drops


def lora_tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The adapters of parts, by the names of a file, fp32, on the CPU: kohya's layout, or PEFT's for DoRA.

    PEFT's layout has no alpha, so B is multiplied by alpha / r.
    """
    tensors: dict[str, Tensor] = {}
    for part, module in parts.items():
        for name, layer in adapted(module):
            down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            if layer.use_dora[ADAPTER]:
                key = PEFT[part] + name
                norms = layer.lora_magnitude_vector[ADAPTER].weight
                tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up * layer.scaling[ADAPTER]}
                tensors[f"{key}.lora_magnitude_vector.weight"] = norms
            else:
                key = KOHYA[part] + name.replace(".", "_")
                tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
                tensors[f"{key}.alpha"] = torch.tensor(float(layer.scaling[ADAPTER] * layer.r[ADAPTER]))
    return {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}


def save_lora(parts: Mapping[str, nn.Module], file: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
    """Writes the adapters of parts atomically."""
    tensors = {name: value.to(dtype) if value.ndim else value for name, value in lora_tensors(parts).items()}
    with replaced(file) as beside:
        save_weights(tensors, beside, metadata)


def read_lora(parts: Mapping[str, Any], file: Path) -> None:
    """Puts the adapters of a LoRA file into parts that have none; layouts of kohya, diffusers and PEFT are read.

    Raises:
        InputError: if it is no LoRA in safetensors, or not of this base.
    """
    layers = count_layers(file)
    options: dict[str, Any] = {"adapter_name": ADAPTER, "low_cpu_mem_usage": False}
    try:
        with quiet():
            tensors, alphas, *_ = Loader.lora_state_dict(str(file), use_safetensors=True)
            # As PEFT's readers accept it; transformers does not take it without the last word.
            tensors = {re.sub(r"(lora_magnitude_vector)$", r"\1.weight", name): tensors[name] for name in tensors}
            Loader.load_lora_into_unet(tensors, alphas, parts["unet"], **options)
            Loader.load_lora_into_text_encoder(tensors, alphas, parts["text_encoder"], **options)
    except Exception as error:  # the libraries may raise anything on names and shapes that they do not expect
        reason = str(error).strip().splitlines() or [repr(error)]
        raise InputError(f"{file} does not fit this base model ({reason[0]}); {REMEDY}") from error
    read = sum(1 for part in parts.values() for _ in adapted(part))
    if read != layers:
        raise InputError(f"{file} adapts {layers} layers, of which this base model has {read}; {REMEDY}")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences diffusers, which warns if a LoRA adapts only some parts, inside the block; its errors are raised."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def check_lora(file: Path, base: Path, train_text_encoder: bool | None) -> None:
    """Checks a LoRA file against a base model in a folder; reads no weights of the base.

    Args:
        file: The LoRA file.
        base: Folder of the base model.
        train_text_encoder: Whether adapters of the text encoder will be trained, besides those of the UNet; None if the
            file is only drawn with.

    Raises:
        InputError: if it is no LoRA in safetensors, not of this base, or adapts other parts than are trained.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_config(base / "unet/config.json"))
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(read_config(base / "text_encoder/config.json")))
    parts = {"unet": unet, "text_encoder": text_encoder}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, for each weight that it does not copy to the meta device
        read_lora(parts, file)
    in_text_encoder = any(adapted(text_encoder))
    if train_text_encoder not in (None, in_text_encoder):
        also = "adapts the text encoder, too" if in_text_encoder else "does not adapt the text encoder"
        raise InputError(f"{file} {also}; set model.train_text_encoder to {str(in_text_encoder).lower()}")
    if train_text_encoder is not None and not any(adapted(unet)):
        raise InputError(f"{file} does not adapt the UNet, which `fit` trains; give one that does")


def count_layers(file: Path) -> int:
    """How many layers a LoRA file adapts.

    Raises:
        InputError: if it is not safetensors, holds no LoRA, or one of a kind that is not read.
    """
    check_regular(file)
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as safetensors ({error}); give a LoRA file") from error
    layers = sum(bool(DOWN.search(name)) for name in names)
    if not layers:
        raise InputError(f"{file} holds no LoRA, whose keys have lora_down or lora_A; a model goes to model.pretrained")
    if any(name.endswith(KOHYA_DORA) for name in names):
        raise InputError(f"{file} is a DoRA in kohya's layout, which diffusers does not read; give it in PEFT's layout")
    return layers
