"""Parameter groups, learning rates, moving average, gradient norm and relative change of the trained weights.

`Weights` maps each part (`unet`, `text_encoder`) to its trained weights by name.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_dreambooth.errors import InputError

Schedule = Literal["constant", "linear", "cosine"]
Weights = Mapping[str, Mapping[str, nn.Parameter]]

MAX_SAMPLED = 4096  # numbers compared of each parameter: enough for two digits, few beside all weights


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


def parameter_groups(weights: Weights, learning_rates: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """One parameter group per part; a part without its own learning rate takes the optimizer's."""
    groups = []
    for part, named in weights.items():
        rate = learning_rates.get(part)
        groups.append({"name": part, "params": list(named.values())} | ({} if rate is None else {"lr": rate}))
    return groups


def check_clipping(optimizer: Optimizer, scaler: object, gradient_clip_val: float | None) -> None:
    """Raises InputError if a fused optimizer would unscale gradients only after they have been clipped."""
    if scaler is not None and gradient_clip_val and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise InputError(
            "a fused optimizer cannot clip gradients under trainer.precision 16-mixed; use bf16-mixed, set the "
            "optimizer's fused to false, or trainer.gradient_clip_val to null"
        )


def set_learning_rates(scheduler: LambdaLR, base_rates: Sequence[float]) -> None:
    """Replaces the learning rates of a resumed state by the configured ones."""
    scheduler.base_lrs = list(base_rates)
    for group, rate, factor in zip(scheduler.optimizer.param_groups, base_rates, scheduler.lr_lambdas, strict=True):
        group["lr"] = rate * factor(scheduler.last_epoch)


class WeightAverage(nn.Module):
    """Exponential moving average of the trained weights, in fp32.

    Lightning's EMAWeightAveraging averages whole modules and swaps them only around validation; this one holds only the
    trained weights, and is swapped in for every image and export.

    Args:
        weights: The trained weights.
        decay: Decay in (0, 1); it grows to this value, so that the first weights lose their influence quickly.
    """

    updates: Tensor

    def __init__(self, weights: Weights, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.current = [weight for named in weights.values() for weight in named.values()]
        self.names = [f"{part}/{name}".replace(".", "/") for part, named in weights.items() for name in named]
        for name, weight in zip(self.names, self.current, strict=True):  # not buffers: DDP would broadcast those
            self.register_parameter(name, nn.Parameter(weight.detach().clone(), requires_grad=False))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @property
    def average(self) -> list[nn.Parameter]:
        """The averaged weights, in the order of the trained ones."""
        return [self.get_parameter(name) for name in self.names]

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the trained weights after an optimizer step; the first update copies them."""
        n = int(self.updates)
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        torch._foreach_lerp_([*self.average], [*self.current], 1 - decay)
        self.updates += 1

    def swap(self) -> None:
        """Exchanges the trained weights and their average."""
        for weight, average in zip(self.current, self.average, strict=True):
            weight.data, average.data = average.data, weight.data


@torch.no_grad()
def weight_sample(named: Mapping[str, nn.Parameter]) -> Tensor:
    """Evenly spaced weights of every parameter of a part, as one fp32 vector."""
    flat = [parameter.detach().flatten() for parameter in named.values()]
    return torch.cat([values[:: max(1, len(values) // MAX_SAMPLED)].float() for values in flat])


def relative_change(trained: Tensor, base: Tensor) -> Tensor:
    """|trained - base| / |base| of two vectors of weights."""
    return (trained - base).norm() / base.norm()


def gradient_norm(named: Mapping[str, nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients of a part."""
    gradients = [parameter.grad for parameter in named.values() if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.stack(torch._foreach_norm(gradients)).float().norm()
