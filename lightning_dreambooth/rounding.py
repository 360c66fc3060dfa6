"""AdamW for weights in bf16, whose small updates are kept on average by stochastic rounding."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import BFloat16, Float, Int16
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import AdamW, adamw

CHUNK = {"cpu": 2**17}  # numbers updated at once, in fp32: as many as a processor's cache holds
LARGE_CHUNK = 2**24  # on other devices, where each operation has a price
MAX_WEIGHTS = 2**20  # Stable Diffusion has about a thousand


def round_stochastically(values: Float[Tensor, " n"], bits: Int16[Tensor, " n"]) -> BFloat16[Tensor, " n"]:
    """Numbers in fp32, which are changed, and 16 random bits for each => one of the two nearest bf16 numbers.

    The nearer one is the more probable, so that the mean over the bits is the number (Gupta et al. 2015,
    arXiv:1502.02551, Sec. 3). bf16 is the upper half of fp32: random bits added to the lower half carry into it with
    just that probability. They come as -2^15 ... 2^15 - 1.
    """
    values.view(torch.int32).add_(bits).add_(2**15)
    return values.view(torch.bfloat16)[1::2]


class RoundingAdamW(Optimizer):
    """AdamW (arXiv:1711.05101) that computes in fp32 and rounds bf16 weights and their states stochastically.

    An update below 1/256 of a weight would be lost in bf16 by rounding to the nearest. Weights in fp32 are updated as
    `torch.optim.AdamW(fused=True)` does. The random bits are a function of step and weight, so that runs repeat and
    resume.

    Args:
        params: Weights, or groups of them.
        lr: Learning rate.
        betas: Decays of the two means of gradients.
        eps: Added to the denominator.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:  # fmt: skip
        AdamW([torch.empty(0)], lr, betas, eps, weight_decay)  # which refuses wrong values
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "steps": 0})
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self.numbers = {weight: number for number, weight in enumerate(weights)}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates the weights that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["steps"] += 1
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state |= {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        gradient = torch.empty_like(weight).copy_(weight.grad)  # type: ignore[arg-type]
        tensors = (weight, gradient, state["exp_avg"], state["exp_avg_sq"])
        size = CHUNK.get(weight.device.type, LARGE_CHUNK)
        bits = generator(weight.device, group["steps"] * MAX_WEIGHTS + self.numbers[weight])
        for chunk in zip(*(in_memory_order(tensor).split(size) for tensor in tensors), strict=True):
            weights, gradients, means, squares = chunk
            step_chunk(weights, gradients, means, squares, group, bits)


def in_memory_order(tensor: Tensor) -> Tensor:
    """A dense tensor => its numbers as a vector, without a copy whatever its memory format."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def step_chunk(
    weight: Float[Tensor, " n"], gradient: Float[Tensor, " n"], mean: Float[Tensor, " n"], square: Float[Tensor, " n"],
    group: dict[str, Any], bits: torch.Generator,
) -> None:  # fmt: skip
    """One step of AdamW on some numbers of a weight and its states.

    The same bits round all three: each keeps its mean.
    """
    stored = (weight, mean, square)
    exact = [numbers.float() for numbers in stored]
    steps_before = torch.full((), group["steps"] - 1.0, device=weight.device)
    decays = {"beta1": group["betas"][0], "beta2": group["betas"][1], "weight_decay": group["weight_decay"]}
    adamw(
        [exact[0]], [gradient.float()], [exact[1]], [exact[2]], [], [steps_before], fused=True, lr=group["lr"],
        eps=group["eps"], amsgrad=False, maximize=False, **decays,
    )  # fmt: skip
    drawn = random_bits(len(weight), weight.device, bits) if weight.dtype == torch.bfloat16 else None
    for numbers, computed in zip(stored, exact, strict=True):
        numbers.copy_(computed if drawn is None else round_stochastically(computed, drawn))


def generator(device: torch.device, seed: int) -> torch.Generator:
    """A device's own generator."""
    return torch.Generator(device).manual_seed(seed)


def random_bits(count: int, device: torch.device, generator: torch.Generator) -> Int16[Tensor, " n"]:
    """Random numbers in -2^15 ... 2^15 - 1, four of each draw."""
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=device)
    return draws.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
