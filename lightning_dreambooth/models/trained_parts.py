"""What of a model is trained: the weights of its parts, or adapters of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lightning_dreambooth.models.lora import Lora, add_adapters, is_adapter, scale_adapters
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

TrainedWeights = Mapping[str, Mapping[str, nn.Parameter]]  # by part and name


class Training(NamedTuple):
    """What is trained, and how it lies in memory.

    Attributes:
        text_encoder: Whether the text encoder is trained, besides the UNet.
        checkpointing: Trades time for memory.
        lora: Settings of new adapters, or a LoRA file, which decides itself what it adapts; None trains the weights.
        lora_scale: Factor of what the adapters add.
        weight_dtype: Number format of the weights of linear layers and convolutions, but not of adapters.
        seed: New adapters are a function of it.
    """

    text_encoder: bool
    checkpointing: bool
    lora: Lora | Path | None
    lora_scale: float
    weight_dtype: torch.dtype
    seed: int


def prepare(model: StableDiffusion, training: Training) -> TrainedWeights:
    """Makes the UNet and, if chosen, the text encoder trainable, or puts adapters into them.

    Returns:
        What is trained: weights or adapters, by part and name.

    Raises:
        InputError: if a LoRA file is not of this base.
    """
    parts: dict[str, Any] = {
        name: part for name, part in model.trainable.items() if name == "unet" or training.text_encoder
    }
    if training.lora is None:
        for part in parts.values():
            part.requires_grad_(True)
    else:
        parts = _adapt(model, parts, training)
    _store_in(training.weight_dtype, model)
    for part in parts.values():
        part.train()
    if training.checkpointing:
        model.unet.enable_gradient_checkpointing()
        if "text_encoder" in parts:
            model.text_encoder.activation_checkpointing_enable()
    return {
        name: {key: weight for key, weight in part.named_parameters() if weight.requires_grad}
        for name, part in parts.items()
    }


def _adapt(model: StableDiffusion, parts: dict[str, Any], training: Training) -> dict[str, Any]:
    if isinstance(training.lora, Path):
        parts = model.read_lora(training.lora, training.lora_scale)
    elif training.lora is not None:
        for name, part in parts.items():
            add_adapters(part, name, training.lora, training.seed)
            scale_adapters(part, training.lora_scale)
    for part in parts.values():
        for name, weight in part.named_parameters():
            weight.requires_grad_(is_adapter(name))
    return parts


def _store_in(dtype: torch.dtype, model: StableDiffusion) -> None:
    """Stores the weights of linear layers and convolutions of UNet and text encoder in a number format.

    Adapters, norms and biases stay in fp32: they are few, and autocast computes norms in fp32.
    """
    for part in model.trainable.values():
        for name, layer in part.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and not is_adapter(f"{name}.weight"):
                layer.weight.data = layer.weight.data.to(dtype)
