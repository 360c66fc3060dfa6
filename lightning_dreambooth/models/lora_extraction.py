"""A LoRA of two models: the nearest adapters of the base to the change that a full fine-tune has made."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_dreambooth.models.lora import ADAPTER, Lora, Targets, adapted, add_adapters


class Kept(NamedTuple):
    """What adapters keep of the change of a model's weights.

    Attributes:
        change: Frobenius norm of the change of all weights.
        lost: Frobenius norm of what the adapters do not add, weights without adapters included.
    """

    change: float
    lost: float

    @property
    def relative_error(self) -> float:
        """|lost| / |change|, in 0 ... 1; 0 if nothing has changed."""
        return self.lost / self.change if self.change else 0.0


@torch.no_grad()
def extract(base: nn.Module, tuned: nn.Module, rank: int, targets: Targets, title: str) -> Kept:
    """Puts into a base part the adapters that bring it nearest to a tuned part, and says what they keep.

    The nearest matrix of rank r is given by the r largest singular values (Eckart & Young 1936).

    Args:
        base: The part without adapters; gets them.
        tuned: The same part after fine-tuning, with weights of the same names.
        rank: Rank of the adapters.
        targets: Layers with adapters.
        title: Title of the progress bar.
    """
    now, before = dict(tuned.named_parameters()), dict(base.named_parameters())
    squares = {name: (now[name] - before[name]).square().sum().item() for name in before}
    add_adapters(base, "extraction", Lora(rank, targets=targets), seed=0)
    lost = dict(squares)
    for name, layer in tqdm([*adapted(base)], title, unit="layer", leave=False):
        change = now[f"{name}.weight"] - layer.get_base_layer().weight
        down, up, rest = nearest(change, rank)
        layer.lora_A[ADAPTER].weight.copy_(down.reshape(layer.lora_A[ADAPTER].weight.shape))
        layer.lora_B[ADAPTER].weight.copy_(up.reshape(layer.lora_B[ADAPTER].weight.shape))
        lost[f"{name}.weight"] = rest
    return Kept(sum(squares.values()) ** 0.5, sum(lost.values()) ** 0.5)


def nearest(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """A weight's change => A [r, in] and B [out, r] of the nearest B A, and the squared norm of what that leaves out.

    The singular values are shared equally by both, and missing ones, of a weight that is smaller than the rank, are 0.
    """
    u, singular, v = torch.linalg.svd(change.flatten(1).float(), full_matrices=False)
    root = singular[:rank].sqrt()
    down, up = v[:rank] * root[:, None], u[:, :rank] * root
    missing = rank - len(root)
    pad = nn.functional.pad
    return pad(down, (0, 0, 0, missing)), pad(up, (0, missing)), singular[rank:].square().sum().item()
