"""Trial of an optimizer on small parameters: wrong arguments show before a model is loaded."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_dreambooth.bounds import check_above_zero
from lightning_dreambooth.errors import InputError

SHAPES = ((4,), (4, 4), (4, 4, 1, 1))  # numbers of dimensions that weights of a UNet have


def build(optimizer: Callable[[Iterable[Any]], Optimizer], device: torch.device | str = "cpu") -> Optimizer:
    """The optimizer of small parameters.

    Raises:
        InputError: if it is not an optimizer, or one of its arguments is wrong.
    """
    weights = [nn.Parameter(torch.ones(shape, device=device)) for shape in SHAPES]
    try:
        built = optimizer([{"name": "trial", "params": weights}])
    except Exception as error:  # a constructor may raise anything
        raise InputError(f"model.optimizer cannot be built: {error}") from error
    if not isinstance(built, Optimizer):
        raise InputError(f"model.optimizer is {type(built).__name__}, which is not a torch.optim.Optimizer")
    for group in built.param_groups:
        if "lr" not in group:
            raise InputError(f"model.optimizer {type(built).__name__} has no learning rate; choose another one")
        check_above_zero("model.optimizer's lr", group["lr"], "nothing would be learned")
        for name, value in group.items():
            _check_number(f"model.optimizer's {name}", name, value)
    return built


def _check_number(key: str, name: str, value: object) -> None:
    numbers = value if isinstance(value, tuple | list) else [value]
    for number in (number for number in numbers if isinstance(number, float)):
        if not math.isfinite(number) or (name == "momentum" and number >= 1):
            raise InputError(f"{key} is {value}, must be finite{' and below 1' * (name == 'momentum')}")


def step(optimizer: Optimizer) -> None:
    """Makes one step with gradients of one.

    Raises:
        InputError: if the optimizer cannot step on its device, or needs more than gradients.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.ones_like(weight)
    try:
        optimizer.step()
    except Exception as error:  # so may a step
        raise InputError(f"model.optimizer {type(optimizer).__name__} cannot step: {error}") from error
