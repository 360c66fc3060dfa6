"""LoRA files: one safetensors in the key layout that diffusers, ComfyUI, kohya and AUTOMATIC1111 all read whole."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
from diffusers.utils import logging
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import replaced
from lightning_dreambooth.models.configs import read_config
from lightning_dreambooth.models.lora import ADAPTER, adapted
from lightning_dreambooth.models.lora_layouts import LoraTensors, read_tensors
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.weight_files import save_weights

KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}  # its prefixes of Stable Diffusion 1.x and 2.x
PEFT = {"unet": "unet.", "text_encoder": "text_encoder.text_model."}
REMEDY = "give the base it was trained on"


def lora_tensors(parts: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The adapters of parts, by the names of a file, fp32, on the CPU: kohya's layout, or PEFT's for DoRA.

    A file has one alpha, because diffusers mistakes alphas that differ, and PEFT's layout has none; B takes the rest.
    """
    tensors: dict[str, Tensor] = {}
    layers = [(part, name, layer) for part, module in parts.items() for name, layer in adapted(module)]
    common = max((layer.scaling[ADAPTER] * layer.r[ADAPTER] for _, _, layer in layers), default=1.0)
    for part, name, layer in layers:
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        if layer.use_dora[ADAPTER]:
            key = PEFT[part] + name
            tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up * layer.scaling[ADAPTER]}
            tensors[f"{key}.lora_magnitude_vector.weight"] = layer.lora_magnitude_vector[ADAPTER].weight
        else:
            key = KOHYA[part] + name.replace(".", "_")
            rest = layer.scaling[ADAPTER] * layer.r[ADAPTER] / common
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up * rest}
            tensors[f"{key}.alpha"] = torch.tensor(float(common))
    return {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}


def save_lora(parts: Mapping[str, nn.Module], file: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
    """Writes the adapters of parts atomically."""
    tensors = {name: value.to(dtype) if value.ndim else value for name, value in lora_tensors(parts).items()}
    with replaced(file) as beside:
        save_weights(tensors, beside, metadata)


def read_lora(parts: Mapping[str, Any], file: Path) -> None:
    """Puts the adapters of a LoRA file into parts that have none; layouts of kohya, diffusers and PEFT are read.

    Alpha over rank goes into B, so that the weights say everything, in a state too.

    Raises:
        InputError: if it is no LoRA in safetensors, or not of this base.
    """
    _put(parts, file, read_tensors(file))


def _put(parts: Mapping[str, Any], file: Path, lora: LoraTensors) -> None:
    options: dict[str, Any] = {"adapter_name": ADAPTER, "low_cpu_mem_usage": False}
    try:
        with quiet():
            tensors, alphas, *_ = Loader.lora_state_dict({**lora.tensors})
            Loader.load_lora_into_unet(tensors, alphas, parts["unet"], **options)
            Loader.load_lora_into_text_encoder(tensors, alphas, parts["text_encoder"], **options)
    except Exception as error:  # the libraries may raise anything on names and shapes that they do not expect
        reason = " ".join(str(error).split())[:300] or repr(error)
        raise InputError(f"{file} does not fit this base model ({reason}); {REMEDY}") from error
    read = sum(1 for part in parts.values() for _ in adapted(part))
    if read != lora.layers:
        raise InputError(f"{file} adapts {lora.layers} layers, of which this base model has {read}; {REMEDY}")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences diffusers inside the block: it warns if a LoRA adapts only some parts, and its errors are raised."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def check_lora(file: Path, base: ModelFiles, train_text_encoder: bool | None) -> None:
    """Checks a LoRA file against a base model; reads no weights of the base.

    Args:
        file: The LoRA file.
        base: Files of the base model, located after the LoRA has been read.
        train_text_encoder: Whether adapters of the text encoder will be trained, besides those of the UNet; None if the
            file is only drawn with.

    Raises:
        InputError: if it is no LoRA in safetensors, not of this base, or adapts other parts than are trained.
    """
    lora = read_tensors(file)
    unet_config, text_config = (read_config(base.folder / part / "config.json") for part in KOHYA)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(text_config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, for each weight that it does not copy to the meta device
        _put({"unet": unet, "text_encoder": text_encoder}, file, lora)
    in_text_encoder = any(adapted(text_encoder))
    if train_text_encoder not in (None, in_text_encoder):
        also = "adapts the text encoder, too" if in_text_encoder else "does not adapt the text encoder"
        raise InputError(f"{file} {also}; set model.train_text_encoder to {str(in_text_encoder).lower()}")
    if train_text_encoder is not None and not any(adapted(unet)):
        raise InputError(f"{file} does not adapt the UNet, which `fit` trains; give one that does")
