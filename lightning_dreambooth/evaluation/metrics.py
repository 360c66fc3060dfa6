"""Fidelity as pure functions of embeddings, and the metric that gathers images from all processes.

Embeddings are rows [n, d] of an image or text encoder, of any length: every function compares directions.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_dreambooth import randomness


def cosines(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Cosine of every row of a with every row of b.

    Raises:
        ValueError: if there are no rows, or some are not finite.
    """
    for rows in (a, b):
        if not len(rows):
            raise ValueError("there are no embeddings to compare; at least one image and one reference are needed")
        if not rows.isfinite().all():
            raise ValueError("embeddings are not finite; the images hold NaN or infinite values")
    return normalize(a.double(), dim=1) @ normalize(b.double(), dim=1).T


def _without_self(square: Float[Tensor, "n n"]) -> Float[Tensor, "n n_minus_1"]:
    count = len(square)
    if count < 2:
        raise ValueError(f"images are compared with each other and there is {count}; at least 2 are needed")
    return square[~torch.eye(count, dtype=torch.bool, device=square.device)].view(count, count - 1)


# CLIP-I and DINO, Ruiz et al. 2023 (arXiv:2208.12242), Sec. 4.1, and for class images PRES, Table 3.
def similarity(images: Float[Tensor, "n d"], references: Float[Tensor, "m d"]) -> float:
    """How alike images and references are on average, in [-1, 1]."""
    return cosines(images, references).mean().item()


def self_similarity(images: Float[Tensor, "n d"]) -> float:
    """Mean cosine of all pairs, no image with itself, in [-1, 1]: the ceiling of `similarity` to these images."""
    return _without_self(cosines(images, images)).mean().item()


# CLIP-T: Ruiz et al. 2023, Sec. 4.1, with the identifier taken out of the text.
def prompt_similarity(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> float:
    """Mean cosine of each image with its own text, in [-1, 1]."""
    return cosines(images, texts).diagonal().mean().item()


# DIV: Ruiz et al. 2023, Table 3, with cosines in place of LPIPS.
def diversity(groups: Sequence[Float[Tensor, "_ d"]]) -> float:
    """1 - mean cosine of the pairs within each group, averaged over groups, in [0, 2]; a group is of one prompt."""
    return 1 - float(np.mean([self_similarity(group) for group in groups]))


def drift(images: Float[Tensor, "n d"], before: Float[Tensor, "n d"]) -> float:
    """1 - mean cosine of each image with that of the untuned model for the same prompt and noise, in [0, 2]."""
    return 1 - prompt_similarity(images, before)


def nearest(images: Float[Tensor, "n d"], references: Float[Tensor, "m d"]) -> float:
    """Mean over images of the cosine with the nearest reference, in [-1, 1]: near 1, training images are copied."""
    return cosines(images, references).amax(1).mean().item()


def nearest_other(references: Float[Tensor, "m d"]) -> float:
    """Mean over references of the cosine with the nearest other one: `nearest` of new images of the subject."""
    return _without_self(cosines(references, references)).amax(1).mean().item()


def fraction_of_range(value: float, start: float, end: float) -> float:
    """How much of the way from start up to end is done, in [0, 1]."""
    return min(1.0, max(0.0, (value - start) / (end - start)))


def balance(parts: Mapping[str, float]) -> float:
    """Harmonic mean in [0, 1]: high only if every part is, 0 as soon as one is."""
    return 0.0 if min(parts.values()) <= 0 else len(parts) / sum(1 / part for part in parts.values())


def bootstrap_interval(values: Sequence[float], seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of the mean (Efron 1979) of values that are independent, such as one per prompt."""
    array = np.asarray(values, dtype=np.float64)
    chosen = randomness.generator(seed, "bootstrap", len(array)).integers(len(array), size=(resamples, len(array)))
    low, high = np.percentile(array[chosen].mean(1), [2.5, 97.5])
    return float(low), float(high)


class GatheredImages(Metric):
    """Images that several processes draw, in the order of their numbers, the same on every process."""

    full_state_update = False
    numbers: list[Tensor]
    images: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("numbers", default=[], dist_reduce_fx="cat")
        self.add_state("images", default=[], dist_reduce_fx="cat")

    def update(self, numbers: Int[Tensor, " n"], images: UInt8[Tensor, "n 3 height width"]) -> None:
        """Takes images in, with the number of each; a process without any gives none."""
        self.numbers.append(numbers)
        self.images.append(images)

    def compute(self) -> UInt8[Tensor, "n 3 height width"]:
        """The images of all processes."""
        numbers, images = dim_zero_cat(self.numbers), dim_zero_cat(self.images)
        return images[numbers.argsort()]
