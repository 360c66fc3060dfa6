"""Images of a study => metrics: a row per image, a cell per row and fit, intervals over fits, and verdicts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dreambooth.data.concepts import instance_images
from lightning_dreambooth.data.images import read_image
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation import metrics
from lightning_dreambooth.evaluation.encoders import Encoder, Encoders
from lightning_dreambooth.evaluation.intervals import Interval, student_interval
from lightning_dreambooth.evaluation.prompts import concept_of, strip_identifier
from lightning_dreambooth.study.figures import Figure, Row
from lightning_dreambooth.study.spec import Hypothesis, Quality

ROLES = {"clip": "clip_i", "dino": "dino"}  # the identity metric of each encoder

Cell = dict[str, float]  # metric => mean over the images of a row of one fit


class CachedEncoders:
    """The encoders of `fidelity`, which embed each file once.

    Args:
        encoders: CLIP measures prompts, identity and quality; DINO identity.
        device: Where encoders run.
        quality: Two opposite texts; None measures no quality.
    """

    def __init__(self, encoders: Encoders, device: torch.device, quality: Quality | None) -> None:
        self.clip, self.device, self.quality = encoders.clip, device, quality
        self.encoders: dict[str, Encoder] = {ROLES[role]: encoder for role, encoder in encoders.by_role.items()}
        self.cache: dict[str, dict[Path, Tensor]] = {name: {} for name in self.encoders}

    def embeddings(self, name: str, paths: Sequence[Path]) -> Tensor:
        """Images => embeddings [n, d] by the encoder of an identity metric."""
        cache, encoder = self.cache[name], self.encoders[name]
        if new := [path for path in dict.fromkeys(paths) if path not in cache]:
            with encoder.on(self.device):
                cache |= dict(zip(new, encoder.images([read_image(path) for path in new]), strict=True))
        return torch.stack([cache[path] for path in paths])

    def measure(self, paths: Sequence[Path], instances: Sequence[Path], text: str) -> tuple[list[Cell], Cell]:
        """Images of one prompt => metrics of each, and the diversity of all."""
        rows: list[Cell] = [{} for _ in paths]
        for name in self.encoders:
            cosines = metrics.cosines(self.embeddings(name, paths), self.embeddings(name, instances))
            _add(rows, name, cosines.mean(1))
        if self.clip is not None:
            texts = [text, *((self.quality.good, self.quality.bad) if self.quality else ())]
            with self.clip.on(self.device):
                text_embeddings, scale = self.clip.texts(texts), self.clip.logit_scale
            cosines = metrics.cosines(self.embeddings("clip_i", paths), text_embeddings)
            _add(rows, "clip_t", cosines[:, 0])
            if self.quality:
                # CLIP-IQA, Wang et al. 2022 (arXiv:2207.12396), Eq. 2, with the encoder's own temperature.
                _add(rows, "quality", (scale * cosines[:, 1:]).softmax(1)[:, 0])
        if not self.encoders or len(paths) < 2:
            return rows, {}
        return rows, {"div": metrics.diversity([self.embeddings(list(self.encoders)[-1], paths)])}


def _add(rows: list[Cell], name: str, values: Tensor) -> None:
    for row, value in zip(rows, values.tolist(), strict=True):
        row[name] = value


def measurable(encoders: Encoders, quality: Quality | None) -> set[str]:
    """The metrics that these encoders measure."""
    roles = {"identity", *encoders.by_role} if encoders.by_role else set()
    names = {name for name in metrics.measured_by("study") if metrics.METRICS[name].encoder in roles}
    return names if quality else names - {"quality"}


def instance_paths(row: Row, data: DreamBoothData) -> list[Path]:
    """Instance images of the concept that a row's prompt shows, of the first one if it shows none."""
    try:
        shown = concept_of(row.coordinates["prompt"], data.concepts)
    except InputError:
        shown = 0
    return [image.path for image in instance_images(data.concepts[shown])[0]]


def text_of(row: Row, data: DreamBoothData) -> str:
    """What a row's images should show, in words that an encoder knows."""
    prompt = str(row.coordinates["prompt"])
    for concept in data.concepts:
        prompt = strip_identifier(prompt, concept.identifier)
    return prompt


def per_seed(cells: Iterable[tuple[int, Cell]], metric: str) -> dict[int, float]:
    """Cells with the seed of their fit => the mean of a metric for each seed."""
    values: dict[int, list[float]] = {}
    for seed, cell in cells:
        if metric in cell:
            values.setdefault(seed, []).append(cell[metric])
    return {seed: fmean(own) for seed, own in values.items()}


class Verdict(NamedTuple):
    """Whether a hypothesis holds: the difference of its two sides, fits of the same seed compared with each other."""

    hypothesis: Hypothesis
    difference: Interval
    by_fit: list[float]
    more: float
    less: float
    verdict: str


def decide(hypothesis: Hypothesis, figure: Figure, cells: Mapping[tuple[int, int], Cell]) -> Verdict | None:
    """The verdict, None if no encoder measures the metric; `cells` are by place of row and seed of fit."""
    more, less = (
        per_seed(
            ((seed, cell) for (place, seed), cell in cells.items() if figure.rows[place].holds(side)),
            hypothesis.measure,
        )
        for side in (hypothesis.more, hypothesis.less)
    )
    common = [seed for seed in more if seed in less]
    if not common:
        return None
    by_fit = [more[seed] - less[seed] for seed in common]
    difference = student_interval(by_fit)
    if difference.low is None or difference.high is None:
        verdict = "not told apart: one fit each has no interval"
    elif difference.low > 0:
        verdict = "holds"
    else:
        verdict = "does not hold: the opposite does" if difference.high < 0 else "not told apart: the interval holds 0"
    return Verdict(hypothesis, difference, by_fit, fmean(more.values()), fmean(less.values()), verdict)
