"""The metrics, as a table and as pure functions of embeddings.

Embeddings are rows [n, d] of an image or text encoder, of any length: every function compares directions.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class MetricInfo(NamedTuple):
    """The description of a metric.

    Attributes:
        better: The better direction; `bounded` is better up to the ceiling.
        compares: The images and texts that are compared.
        encoder: The encoder: `clip`, `dino`, `identity` (DINO where it is configured, else CLIP) or none.
        by: Who measures it: `validation`, `study` or both.
    """

    better: Literal["up", "down", "bounded"]
    compares: str
    encoder: Literal["clip", "dino", "identity", "none"]
    by: frozenset[str]


_VALIDATION, _STUDY = frozenset({"validation"}), frozenset({"study"})

# By name, in the order in which tables and reports show them.
METRICS = {
    "score": MetricInfo("up", "identity, prompt, attributes and class, balanced", "none", _VALIDATION),
    "clip_i": MetricInfo(
        "up", "each image of the subject with every instance image, by CLIP", "clip", _VALIDATION | _STUDY
    ),
    "dino": MetricInfo("up", "the same, by DINO", "dino", _VALIDATION | _STUDY),
    "clip_t": MetricInfo("up", "each image with its prompt without the identifier", "clip", _VALIDATION | _STUDY),
    "attributes": MetricInfo(
        "up",
        "what prompts ask for besides the subject: `clip_t` less that with the instance prompt",
        "clip",
        _VALIDATION,
    ),
    "pres": MetricInfo("down", "images of the class prompt with the instance images", "identity", _VALIDATION),
    "drift": MetricInfo(
        "down",
        "images of class and unrelated prompts with the base model's for the same noise",
        "identity",
        _VALIDATION,
    ),
    "nearest": MetricInfo("bounded", "each image with its nearest instance image", "identity", _VALIDATION),
    "quality": MetricInfo("up", "each image with two opposite texts", "clip", _STUDY),
    "div": MetricInfo("up", "images of one prompt with each other", "identity", _VALIDATION | _STUDY),
}


def measured_by(who: str) -> tuple[str, ...]:
    """The metrics of `validation` or of `study`, by name."""
    return tuple(name for name, info in METRICS.items() if who in info.by)


def cosines(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Cosine of every row of a with every row of b.

    Raises:
        ValueError: if there are no rows, or some are not finite.
    """
    for rows in (a, b):
        if not len(rows):
            raise ValueError("there are no embeddings to compare; at least one on each side is needed")
        if not rows.isfinite().all():
            raise ValueError("embeddings are not finite; the images hold NaN or infinite values")
    return normalize(a.double(), dim=1) @ normalize(b.double(), dim=1).T


def _off_diagonal(square: Float[Tensor, "n n"]) -> Float[Tensor, "n n_minus_1"]:
    count = len(square)
    if count < 2:
        raise ValueError(f"images are compared with each other, and their number is {count}; at least 2 are needed")
    return square[~torch.eye(count, dtype=torch.bool, device=square.device)].view(count, count - 1)


# CLIP-I and DINO, Ruiz et al. 2023 (arXiv:2208.12242), Sec. 4.1, and for class images PRES, Table 3.
def similarity(images: Float[Tensor, "n d"], instances: Float[Tensor, "m d"]) -> float:
    """Mean cosine of all pairs of an image and an instance image, in [-1, 1]."""
    return cosines(images, instances).mean().item()


def self_similarity(images: Float[Tensor, "n d"]) -> float:
    """Mean cosine of all pairs, no image with itself, in [-1, 1]: the ceiling of `similarity` to these images."""
    return _off_diagonal(cosines(images, images)).mean().item()


# CLIP-T: Ruiz et al. 2023, Sec. 4.1, without the identifier in the text.
def prompt_similarity(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> float:
    """Mean cosine of each image with its own text, in [-1, 1]."""
    return cosines(images, texts).diagonal().mean().item()


# DIV: Ruiz et al. 2023, Table 3, with cosines in place of LPIPS.
def diversity(groups: Sequence[Float[Tensor, "_ d"]]) -> float:
    """1 - mean cosine of the pairs within each group, averaged over groups, in [0, 2]; a group has one prompt."""
    return 1 - fmean(self_similarity(group) for group in groups)


def drift(images: Float[Tensor, "n d"], base: Float[Tensor, "n d"]) -> float:
    """1 - mean cosine of each image with the base model's for the same prompt and noise, in [0, 2]."""
    return 1 - prompt_similarity(images, base)


def nearest(images: Float[Tensor, "n d"], instances: Float[Tensor, "m d"]) -> float:
    """Mean over images of the cosine with the nearest instance image, in [-1, 1]; near 1 for copies."""
    return cosines(images, instances).amax(1).mean().item()


def nearest_other(instances: Float[Tensor, "m d"]) -> float:
    """Mean over instance images of the cosine with the nearest other one: the ceiling of `nearest`."""
    return _off_diagonal(cosines(instances, instances)).amax(1).mean().item()


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
        """Adds images with their numbers; both may be empty, for a process that draws none."""
        self.numbers.append(numbers)
        self.images.append(images)

    def compute(self) -> UInt8[Tensor, "n 3 height width"]:
        """The images of all processes, by number."""
        numbers, images = dim_zero_cat(self.numbers), dim_zero_cat(self.images)
        return images[numbers.argsort()]
