"""Parameter groups, learning rates, updates, moving average and relative change of the trained weights."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.trained_parts import TrainedWeights

Schedule = Literal["constant", "linear", "cosine"]

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


def parameter_groups(weights: TrainedWeights, learning_rates: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """One parameter group per part; a part without its own learning rate takes the optimizer's."""
    groups = []
    for part, named in weights.items():
        rate = learning_rates.get(part)
        groups.append({"name": part, "params": list(named.values())} | ({} if rate is None else {"lr": rate}))
    return groups


def scaler(trainer: Any) -> object:
    """The gradient scaler of a trainer; None if its precision needs none."""
    return getattr(trainer.precision_plugin, "scaler", None)


def check_clipping(optimizer: Optimizer, gradient_scaler: object, gradient_clip_val: float | None) -> None:
    """Raises InputError if a fused optimizer would unscale gradients only after they have been clipped."""
    if gradient_scaler is not None and gradient_clip_val and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise InputError(
            "a fused optimizer cannot clip gradients under trainer.precision 16-mixed; use bf16-mixed, set the "
            "optimizer's fused to false, or trainer.gradient_clip_val to null"
        )


def set_learning_rates(scheduler: LambdaLR, base_rates: Sequence[float]) -> None:
    """Replaces the learning rates of a resumed state by the configured ones."""
    scheduler.base_lrs = list(base_rates)
    for group, rate, factor in zip(scheduler.optimizer.param_groups, base_rates, scheduler.lr_lambdas, strict=True):
        group["lr"] = rate * factor(scheduler.last_epoch)


def update_in_backward(optimizer: Optimizer, before: Callable[[nn.Parameter], None]) -> None:
    """Makes an optimizer update each weight as soon as backward has its gradient, which is then freed.

    So the gradients of all weights never exist at once (LOMO, Lv et al. 2023, arXiv:2306.09782, Sec. 3.2). The
    optimizer still keeps the states of all weights; its own step, after backward, finds no gradients.

    Args:
        optimizer: The optimizer.
        before: Called with each weight before it is updated, while it has its gradient.
    """

    def update(weight: nn.Parameter, place: int) -> None:
        before(weight)
        groups = optimizer.param_groups
        optimizer.param_groups = [{**groups[place], "params": [weight]}]
        try:
            optimizer.step()
        finally:
            optimizer.param_groups = groups
        weight.grad = None

    for place, group in enumerate(optimizer.param_groups):
        for weight in group["params"]:
            weight.register_post_accumulate_grad_hook(partial(update, place=place))


@contextmanager
def without_waits(optimizer: Optimizer) -> Iterator[None]:
    """Keeps an optimizer of bitsandbytes from waiting for the device after each weight, which only paged states need.

    See `sync_gpu` in https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/optim/optimizer.py.
    """
    library: Any = sys.modules.get("bitsandbytes.optim.optimizer")
    if library is None or getattr(optimizer, "is_paged", True):
        yield
        return
    wait, library.sync_gpu = library.sync_gpu, lambda weight: None
    try:
        yield
    finally:
        library.sync_gpu = wait


class WeightAverage(nn.Module):
    """Exponential moving average of the trained weights, in fp32.

    Lightning's EMAWeightAveraging averages whole modules and swaps them only around validation; this one holds only the
    trained weights, and is swapped in for every image and export.

    Args:
        weights: The trained weights.
        decay: Decay in (0, 1); it grows to this value, so that the first weights lose their influence quickly.

    Attributes:
        average: The averaged weights, in the order of the trained ones.
        updates: Number of updates; a buffer in states, but counted here, where the host need not wait to read it.
    """

    def __init__(self, weights: TrainedWeights, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.updates = 0
        self.current = [weight for named in weights.values() for weight in named.values()]
        self.average = [nn.Parameter(weight.detach().clone(), requires_grad=False) for weight in self.current]
        self.names = [f"{part}/{name}".replace(".", "/") for part, named in weights.items() for name in named]
        for name, weight in zip(self.names, self.average, strict=True):  # not buffers: DDP would broadcast those
            self.register_parameter(name, weight)

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the trained weights after an optimizer step; the first update copies them."""
        n = self.updates
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        torch._foreach_lerp_([*self.average], [*self.current], 1 - decay)
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Exchanges the trained weights and their average inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for weight, average in zip(self.current, self.average, strict=True):
            weight.data, average.data = average.data, weight.data

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}updates"] = torch.tensor(self.updates)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        self.updates = int(state_dict.pop(f"{prefix}updates"))
        super()._load_from_state_dict(state_dict, prefix, *args)


@torch.no_grad()
def weight_sample(named: Mapping[str, nn.Parameter]) -> Tensor:
    """Evenly spaced weights of every parameter of a part, as one fp32 vector, whatever their layout in memory."""
    return torch.cat([_evenly_spaced(parameter).float() for parameter in named.values()])


def _evenly_spaced(values: Tensor) -> Tensor:
    # By index: `flatten` would copy every weight that is not contiguous, such as those in channels_last.
    places = torch.arange(0, values.numel(), max(1, values.numel() // MAX_SAMPLED), device=values.device)
    return values[torch.unravel_index(places, values.shape)]


def relative_change(trained: Tensor, base: Tensor) -> Tensor:
    """|trained - base| / |base| of two vectors of weights."""
    return (trained - base).norm() / base.norm()
