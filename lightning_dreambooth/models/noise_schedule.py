"""Noise schedule that a model was trained with, from the config of its scheduler."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDPMScheduler

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.configs import NOISE_STEPS, PREDICTION_TYPES, SCHEDULER, read_config, readable_model

# What training and every sampler must share. Schedulers have different defaults for these.
SHARED = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "rescale_betas_zero_snr")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")  # known to all samplers


def load_noise_schedule(folder: Path) -> DDPMScheduler:
    """The noise schedule in the folder of a model; its config keeps every option that the model states.

    Raises:
        InputError: if the model was not trained to remove noise in steps of betas, or predicts something else.
    """
    config = read_config(folder / SCHEDULER)
    config = _own_defaults(str(config.get("_class_name"))) | config
    _check(folder, config)
    with readable_model(folder):
        schedule = DDPMScheduler.from_config(config)
        alphas_bar = schedule.alphas_cumprod
        if len(alphas_bar) != NOISE_STEPS or not ((alphas_bar >= 0) & (alphas_bar <= 1)).all():
            raise ValueError(f"its scheduler needs {NOISE_STEPS} betas in 0 ... 1")
    return schedule


def _own_defaults(name: str) -> dict[str, Any]:
    """The defaults of the model's own scheduler, which hold where its config says nothing."""
    own = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    parameters = inspect.signature(own).parameters if own is not None else {}
    return {key: parameters[key].default for key in SHARED if key in parameters}


def _check(folder: Path, config: dict[str, Any]) -> None:
    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise InputError(f"{folder} predicts {prediction_type!r}; supported are {', '.join(PREDICTION_TYPES)}")
    beta_schedule = config.get("beta_schedule")
    if beta_schedule not in BETA_SCHEDULES:
        raise InputError(
            f"{folder} has the scheduler {config.get('_class_name')} with beta_schedule {beta_schedule!r}; supported "
            f"are {', '.join(BETA_SCHEDULES)}"
        )
