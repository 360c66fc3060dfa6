"""Arguments of Lightning's Trainer that have one meaning or bounds here; other values are refused with the reason."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher

from lightning_dreambooth.bounds import MAX_STEPS, Number, check_range
from lightning_dreambooth.errors import InputError

STRATEGIES = (SingleDeviceStrategy, DDPStrategy)  # tested; others keep parts of the weights in each process
MAX_PROCESSES = 1024  # of a node, and nodes


class Only(NamedTuple):
    """The values that an argument may have, and what to use in place of others."""

    values: tuple[Any, ...]
    remedy: str


class Bounds(NamedTuple):
    """The numbers that an argument may have, besides null."""

    low: Number
    high: Number
    remedy: str = ""


WHOLE = (None, 1.0)
IMAGES = "samples, fidelity and benchmark have num_images and prompts"
ARGUMENTS: dict[str, Only | Bounds] = {
    "accumulate_grad_batches": Bounds(1, MAX_STEPS),
    "barebones": Only((False,), "it switches off what a run logs and saves"),
    "check_val_every_n_epoch": Only((None, 1), "fidelity.every_n_steps says how often a run is measured"),
    "default_root_dir": Only((None,), "a run writes to runs/<name>; give --name"),
    "enable_checkpointing": Only((None, False), "the section checkpoint writes states and exports"),
    "fast_dev_run": Only((False, 0), "use --trainer.max_steps 1 and a --name of its own"),
    "gradient_clip_algorithm": Only((None, "norm", "value"), "it is norm or value"),
    "gradient_clip_val": Bounds(0, math.inf, "null does not clip"),
    "limit_predict_batches": Only(WHOLE, IMAGES),
    "limit_test_batches": Only(WHOLE, IMAGES),
    "limit_val_batches": Only(WHOLE, IMAGES),
    "log_every_n_steps": Bounds(1, MAX_STEPS, "--trainer.logger false logs nothing"),
    "max_epochs": Only((None, 1, -1), "a run is one long epoch; trainer.max_steps is its length"),
    "max_steps": Bounds(-1, MAX_STEPS, "it is the length of the training in optimizer steps"),
    "min_epochs": Only((None, 0), "a run is one long epoch, which a signal may end"),
    "min_steps": Only((None, 0), "a signal or fidelity.patience may end a run at any step"),
    "model_registry": Only((None,), "exports lie in runs/<name>/exports"),
    "num_nodes": Bounds(1, MAX_PROCESSES),
    "num_sanity_val_steps": Only((None, 0), "fidelity measures the base before the first step"),
    "overfit_batches": Only((0, 0.0), "give fewer images, or data.num_instance_images"),
    "precision": Only(
        (None, "32", "32-true", 32, "16", "16-mixed", 16, "bf16", "bf16-mixed"),
        "use 32, bf16-mixed or 16-mixed: weights are trained in 32 bits",
    ),
    "reload_dataloaders_every_n_epochs": Only((0,), "a run is one long epoch"),
    "use_distributed_sampler": Only((False,), "the order of samples is the same on any number of processes"),
    "val_check_interval": Only(WHOLE, "fidelity.every_n_steps says how often a run is measured"),
}  # fmt: skip
# What Lightning's help says of these holds here, too.
AS_IN_LIGHTNING = (
    "accelerator", "strategy", "devices", "logger", "callbacks", "max_time", "limit_train_batches",
    "enable_progress_bar", "enable_model_summary", "deterministic", "benchmark", "inference_mode", "profiler",
    "detect_anomaly", "plugins", "sync_batchnorm", "enable_autolog_hparams",
)  # fmt: skip


def fast_precision(accelerator: str) -> str:
    """The precision of a run that states none: bf16-mixed if its device computes in bf16, else 32.

    A processor without instructions for bf16 converts each number to 32 bits and back, which takes many times as long.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        has_bf16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return "bf16-mixed" if has_bf16 else "32-true"


def check_arguments(given: Mapping[str, Any]) -> None:
    """Checks the Trainer's arguments as they are given.

    Raises:
        InputError: if one would do here something other than what its help says, or is out of its bounds.
    """
    for name, rule in ARGUMENTS.items():
        if name not in given:
            continue
        key, value = f"trainer.{name}", given[name]
        if isinstance(rule, Bounds):
            check_range(key, value, *rule)
        elif (type(value), value) not in [(type(one), one) for one in rule.values]:  # 1 is a number, 1.0 a share
            allowed = " or ".join("null" if one is None else str(one).lower() for one in rule.values)
            raise InputError(f"{key} is {value}, must be {allowed}: {rule.remedy}")
    devices, limit = given.get("devices"), given.get("limit_train_batches")
    if isinstance(devices, int | str) and str(devices).lstrip("-").isdigit():
        check_range("trainer.devices", int(devices), -1, MAX_PROCESSES)
    if limit is not None:
        check_range("trainer.limit_train_batches", limit, 1 if isinstance(limit, int) else 1e-9,
                    MAX_STEPS if isinstance(limit, int) else 1.0, "a whole number counts micro-batches")  # fmt: skip


def check_trainer(trainer: Trainer) -> None:
    """Checks a trainer that is to fit.

    Raises:
        InputError: if it has no length, or a strategy that splits the weights.
    """
    strategy = trainer.strategy
    if trainer.max_steps < 1:
        raise InputError("trainer.max_steps must be 1 or more: the length of the training in optimizer steps")
    if type(strategy) not in STRATEGIES or isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise InputError(
            f"trainer.strategy {type(strategy).__name__} splits weights that exports need whole, or forks; "
            "use ddp, and configs/low_memory.yaml if memory is short"
        )
