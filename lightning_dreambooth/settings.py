"""Bounds of the arguments of `DreamBooth`, alone and with those of a trainer."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.optim import Optimizer

from lightning_dreambooth import optimization, trial
from lightning_dreambooth.bounds import MAX_SEED, MAX_STEPS, check_above_zero, check_lora_scale, check_range
from lightning_dreambooth.data.checks import warn
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.rounding import RoundingAdamW

MAX_RANK = 1280  # the width of the widest layers of Stable Diffusion 1.x and 2.x
LOW_RATE = 2e-5  # with which adapters learn nothing in the usual number of steps
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
    if isinstance(settings["lora"], dict):
        check_range("model.lora.rank", settings["lora"]["rank"], 1, MAX_RANK)
        check_above_zero("model.lora.alpha", settings["lora"]["alpha"], "null takes the rank")
    decay = settings["ema_decay"]
    if decay is not None and not 0 < decay < 1:
        raise InputError(f"model.ema_decay is {decay}, must lie between 0 and 1; null keeps no average")
    of_text_encoder = {settings["text_encoder_lr"], settings["text_encoder_stop_step"]} - {None}
    if of_text_encoder and not settings["train_text_encoder"]:
        raise InputError("model.text_encoder_lr and text_encoder_stop_step need model.train_text_encoder: true")


def check_precision(settings: Mapping[str, Any], precision: str) -> None:
    """Raises InputError if a precision does not compute with the number format of the weights."""
    if settings["weight_dtype"] != "float32" and precision != "bf16-mixed":
        raise InputError(f"model.weight_dtype bfloat16 needs trainer.precision bf16-mixed; it is {precision}")


def check_training(settings: Mapping[str, Any], optimizer: Callable[[Iterable[Any]], Optimizer], trainer: Any) -> None:
    """Checks how a trainer would train.

    Raises:
        InputError: if the warm-up is too long, or the optimizer cannot step, clip or round as it is asked to.
    """
    if settings["lora_scale"] != 1:
        raise InputError(f"model.lora_scale is {settings['lora_scale']:g}, must be 1 for fit: it trains whole adapters")
    check_range("model.warmup_steps", settings["warmup_steps"], 0, trainer.max_steps, "it is part of trainer.max_steps")
    tried = trial.build(optimizer, trainer.strategy.root_device)
    if settings["lora"] and (rate := tried.param_groups[0]["lr"]) < LOW_RATE:
        warn(f"the learning rate {rate:g} is low for adapters, which need some 1e-4: give model.optimizer.lr")
    if type(tried).__name__.endswith("8bit") and trainer.strategy.root_device.type == "cpu":
        warn(
            f"{type(tried).__name__} takes many times as long on a CPU as torch.optim.AdamW with fused: true, and only "
            "saves memory; give model.optimizer"
        )
    trial.step(tried)
    optimization.check_clipping(tried, optimization.scaler(trainer), trainer.gradient_clip_val)
    if settings["weight_dtype"] != "float32" and settings["lora"] is None:
        _check_rounding(settings, tried)
    if settings["update_in_backward"]:
        _check_update_in_backward(trainer)


def _check_rounding(settings: Mapping[str, Any], optimizer: Optimizer) -> None:
    if not isinstance(optimizer, RoundingAdamW):
        path = f"{RoundingAdamW.__module__}.{RoundingAdamW.__qualname__}"
        raise InputError(
            f"model.weight_dtype is {settings['weight_dtype']}, in which {type(optimizer).__name__} would lose small "
            f"updates; give model.optimizer {path}, or model.lora"
        )
    if settings["ema_decay"] is not None:
        raise InputError("model.ema_decay averages weights in float32; give null, or model.weight_dtype float32")


def _check_update_in_backward(trainer: Any) -> None:
    if optimization.scaler(trainer) is not None:  # it looks at all gradients before the first update
        raise InputError(
            f"model.update_in_backward does not go with trainer.precision {trainer.precision}; use bf16-mixed"
        )
    for key, value, needed in (
        ("gradient_clip_val", trainer.gradient_clip_val or None, None),  # the norm of all gradients comes too late
        ("accumulate_grad_batches", trainer.accumulate_grad_batches, 1),
        ("devices", trainer.world_size, 1),
    ):
        if value != needed:
            shown = "null" if needed is None else needed
            raise InputError(f"model.update_in_backward needs trainer.{key} {shown}; it is {value}")
