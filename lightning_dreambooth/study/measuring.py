"""Metrics of a study's images, and verdicts on its hypotheses."""

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
from lightning_dreambooth.evaluation.prompts import shown_concept, strip_identifier
from lightning_dreambooth.study.figures import Figure, FigureRow
from lightning_dreambooth.study.spec import Hypothesis, Quality

ROLES = {"clip": "clip_i", "dino": "dino"}  # the identity metric of each encoder

Cell = dict[str, float]  # metric => mean over the images of a row of one fit


class CachedEncoders:
    """The encoders of `fidelity`, with a cache so that each file is embedded once.

    Args:
        encoders: CLIP measures prompts, identity and quality; DINO identity.
        device: Device on which encoders run.
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
        """Images of one prompt => metrics of each image, and the diversity of all as a cell of its own."""
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


def instance_paths(row: FigureRow, data: DreamBoothData) -> list[Path]:
    """Instance images of the concept that a row's prompt shows; of the first concept if it shows none."""
    try:
        shown = shown_concept(row.coordinates["prompt"], data.concepts)
    except InputError:
        shown = 0
    return [image.path for image in instance_images(data.concepts[shown])]


def row_text(row: FigureRow, data: DreamBoothData) -> str:
    """The text that a row's images should show: its prompt without identifiers."""
    prompt = str(row.coordinates["prompt"])
    for concept in data.concepts:
        prompt = strip_identifier(prompt, concept.identifier)
    return prompt


def per_seed(cells: Iterable[tuple[int, Cell]], metric: str) -> dict[int, float]:
    """Cells with the seed of their fit => the mean of a metric for each seed."""
    by_seed: dict[int, list[float]] = {}
    for seed, cell in cells:
        if metric in cell:
            by_seed.setdefault(seed, []).append(cell[metric])
    return {seed: fmean(values) for seed, values in by_seed.items()}


class Verdict(NamedTuple):
    """Whether a hypothesis holds.

    Attributes:
        hypothesis: The hypothesis.
        difference: Mean difference of the two sides, fits of the same seed compared with each other.
        by_fit: The difference for each seed.
        more: Mean of the side that should be higher.
        less: Mean of the other side.
        verdict: The result in words.
    """

    hypothesis: Hypothesis
    difference: Interval
    by_fit: list[float]
    more: float
    less: float
    verdict: str


def decide(hypothesis: Hypothesis, figure: Figure, cells: Mapping[tuple[int, int], Cell]) -> Verdict | None:
    """The verdict on a hypothesis; None if no encoder measures its metric.

    Args:
        hypothesis: The hypothesis.
        figure: Its figure.
        cells: Metrics of the figure, by number of the row and seed of the fit.
    """
    more, less = (
        per_seed(
            ((seed, cell) for (place, seed), cell in cells.items() if figure.rows[place].matches(side)),
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
