"""Norms and faults of gradients, kept on the device of the weights, because the host waits whenever it reads there."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from lightning_dreambooth.errors import TrainingError
from lightning_dreambooth.models.trained_parts import TrainedWeights

STABILITY_HINT = "lower the learning rate, or use trainer.precision bf16-mixed or 32"
SCALER_SKIPS = 20  # a gradient scaler halves its first scale of 65536 to 1 in sixteen skipped steps
LOSS = -1  # where a fault is: in the loss, in the weight of that number, or in the part of a number beyond the weights


def weight_norms(weights: Collection[nn.Parameter]) -> Tensor:
    """Euclidean norm of the gradient of each weight; 0 without a gradient."""
    gradients = [weight.new_zeros(1) if weight.grad is None else weight.grad for weight in weights]
    return torch.stack(torch._foreach_norm(gradients, 2, torch.float32))


class GradientRecord:
    """Norms of the last gradients, and the first fault: a step that destroys the weights, or that changes nothing.

    A step with a fault is applied, since the host would have to wait to know of it; but `check` is called whenever
    weights are logged, drawn with or saved, so nothing that follows from such a step is.

    Args:
        weights: The trained weights.
        scaled: Whether there is a gradient scaler, which skips steps with gradients that are not finite.
        device: Device of the weights.

    Attributes:
        norms: Gradient norm of each part.
        total: Gradient norm of all parts together.
        updates: Number of steps with finite gradients.
    """

    def __init__(self, weights: TrainedWeights, scaled: bool, device: torch.device) -> None:
        self.weights = weights
        self.tolerated = SCALER_SKIPS if scaled else 0
        self.step, self.place, self.updates, self.skipped = torch.zeros(4, dtype=torch.long, device=device)
        self.freed: dict[nn.Parameter, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.total = torch.zeros((), device=device)

    def record_loss(self, step: int, loss: Tensor) -> None:
        """Takes a loss that is not finite for a fault."""
        self._record(step, ~loss.isfinite(), LOSS)

    def measure_early(self, weight: nn.Parameter) -> None:
        """Measures the gradient of a weight that is freed before `measure`."""
        self.freed[weight] = weight_norms([weight])[0]

    def measure(self, step: int) -> None:
        """Measures the gradients of an optimizer step."""
        by_part = {part: self._norms(named.values()) for part, named in self.weights.items()}
        by_weight = torch.cat([*by_part.values()])
        self.norms = {part: norms.norm() for part, norms in by_part.items()}
        self.total = by_weight.norm()
        finite = self.total.isfinite()
        self.updates = self.updates + finite
        self.skipped = torch.where(finite, 0, self.skipped + 1)
        self._record(step, self.skipped > self.tolerated, by_weight.argmax())  # which takes NaN for the largest number
        missing = torch.stack([*self.norms.values()]) == 0
        self._record(step, missing.any(), missing.long().argmax() + len(by_weight))

    def _norms(self, weights: Collection[nn.Parameter]) -> Tensor:
        if not self.freed:
            return weight_norms(weights)
        return torch.stack([self.freed.pop(weight, torch.zeros_like(self.total)) for weight in weights])

    def _record(self, step: int, fault: Tensor, place: Tensor | int) -> None:
        first = fault & (self.step == 0)
        self.step = torch.where(first, step, self.step)
        self.place = torch.where(first, place, self.place)

    def check(self) -> None:
        """Waits for the device, and ends a run with a fault.

        Raises:
            TrainingError: if a loss or a gradient was not finite, or no gradient reached a part.
        """
        step, place = torch.stack([self.step, self.place]).tolist()
        if step:
            raise TrainingError(f"stopped before anything of step {step} was saved: {self._describe(place)}")

    def _describe(self, place: int) -> str:
        names = [f"{part}.{name}" for part, named in self.weights.items() for name in named]
        if place == LOSS:
            return f"the loss is not finite; {STABILITY_HINT}"
        if place < len(names):
            return f"{names[place]} has a gradient that is not finite; {STABILITY_HINT}"
        return f"no gradient reaches the {[*self.weights][place - len(names)]}, nothing would be learned"
