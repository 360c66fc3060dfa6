"""Bounds of the arguments of `DreamBooth`."""

import math
from collections.abc import Mapping
from typing import Any

from lightning_dreambooth.bounds import MAX_SEED, MAX_STEPS, check_above_zero, check_lora_scale, check_range
from lightning_dreambooth.errors import InputError

MAX_RANK = 1280  # the width of the widest layers of Stable Diffusion 1.x and 2.x
FROZEN = "model.train_text_encoder: false does not train it"


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises InputError if an argument of the module, by name, is out of its bounds."""
    for name, low, high in (
        ("prior_weight", 0, math.inf), ("noise_offset", 0, math.inf), ("warmup_steps", 0, MAX_STEPS),
        ("seed", 0, MAX_SEED),
    ):  # fmt: skip
        check_range(f"model.{name}", settings[name], low, high)
    check_above_zero("model.snr_gamma", settings["snr_gamma"], "null switches the weighting off")
    check_above_zero("model.text_encoder_lr", settings["text_encoder_lr"], FROZEN)
    check_range("model.text_encoder_stop_step", settings["text_encoder_stop_step"], 1, MAX_STEPS, FROZEN)
    check_lora_scale("model.lora_scale", settings["lora_scale"])
    if settings["lora_scale"] != 1 and settings["lora"] is None:
        raise InputError(f"model.lora_scale is {settings['lora_scale']:g}, but there are no adapters; give model.lora")
    if settings["base_dtype"] != "float32" and settings["lora"] is None:
        raise InputError(f"model.base_dtype is {settings['base_dtype']}, which only model.lora can train on")
    if isinstance(settings["lora"], dict):
        check_range("model.lora.rank", settings["lora"]["rank"], 1, MAX_RANK)
        check_above_zero("model.lora.alpha", settings["lora"]["alpha"], "null takes the rank")
    decay = settings["ema_decay"]
    if decay is not None and not 0 < decay < 1:
        raise InputError(f"model.ema_decay is {decay}, must lie between 0 and 1; null keeps no average")
    of_text_encoder = {settings["text_encoder_lr"], settings["text_encoder_stop_step"]} - {None}
    if of_text_encoder and not settings["train_text_encoder"]:
        raise InputError("model.text_encoder_lr and text_encoder_stop_step need model.train_text_encoder: true")
