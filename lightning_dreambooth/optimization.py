"""How weights move: the learning rate's course, the running average, the way from where a part began."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Schedule = Literal["constant", "linear", "cosine"]

PROBE_SIZE = 4096  # numbers watched of each parameter: enough for two digits, nothing beside the weights


def learning_rate_factor(
    schedule: Schedule, warmup_steps: int, max_steps: int, stop_step: int | None = None
) -> Callable[[int], float]:
    """Optimizer step => factor of the learning rate: linear warm-up, then the schedule, zero from `stop_step` on."""

    def factor(step: int) -> float:
        if stop_step is not None and step >= stop_step:
            return 0.0
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, max_steps - warmup_steps)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]

    return factor


def ema_update(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """In-place exponential average; its decay grows to the given one, so that the first steps do not linger."""

    @torch.no_grad()
    def update(average: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        n = int(updates)
        torch._foreach_lerp_(average, current, 1 - min(decay, (1 + n) / (10 + n)))

    return update


@torch.no_grad()
def probe(part: nn.Module) -> Tensor:
    """Evenly spaced weights of every parameter, one vector for the whole part."""
    flat = [parameter.detach().flatten() for parameter in part.parameters()]
    return torch.cat([values[:: max(1, len(values) // PROBE_SIZE)].float() for values in flat])


def relative_change(now: Tensor, start: Tensor) -> Tensor:
    """|now - start| / |start| of two probes."""
    return (now - start).norm() / start.norm()


def gradient_norm(part: nn.Module) -> Tensor:
    """Euclidean norm of all gradients of a part."""
    gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.stack(torch._foreach_norm(gradients)).float().norm()
