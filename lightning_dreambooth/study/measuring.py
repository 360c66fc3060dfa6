"""Images of a study => figures: a row per image, a cell per row and fit, intervals over fits, and findings."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from scipy.stats import t as student
from torch import Tensor

from lightning_dreambooth.data.concepts import instance_images
from lightning_dreambooth.data.images import read_image
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation import metrics
from lightning_dreambooth.evaluation.encoders import Clip, Dino, Encoder
from lightning_dreambooth.evaluation.prompts import concept_of, without
from lightning_dreambooth.study.reading import Figure, Row
from lightning_dreambooth.study.spec import Hypothesis, Quality

MEASURES = ("clip_i", "dino", "clip_t", "quality", "div")
CONFIDENCE = 0.95  # of the intervals

Cell = dict[str, float]  # measure => mean over the images of a row of one fit


class Interval(NamedTuple):
    """A mean over fits with the interval that holds the true one in 95 % of studies; only the mean of a single fit."""

    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of values that are independent, such as one per fit."""
    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return Interval(mean, mean - half, mean + half)


class CachedEncoders:
    """Looks at images with the encoders of `fidelity`, at each file once.

    Args:
        clip: Measures prompts, identity and quality.
        dino: Measures identity.
        device: Where encoders run.
        quality: Two opposite texts.
    """

    def __init__(self, clip: Clip | None, dino: Dino | None, device: torch.device, quality: Quality | None) -> None:
        self.clip, self.device, self.quality = clip, device, quality
        self.encoders: dict[str, Encoder] = {
            name: encoder for name, encoder in (("clip_i", clip), ("dino", dino)) if encoder is not None
        }
        self.seen: dict[str, dict[Path, Tensor]] = {name: {} for name in self.encoders}

    def embeddings(self, name: str, paths: Sequence[Path]) -> Tensor:
        """Images => rows of an encoder."""
        seen = self.seen[name]
        if new := [path for path in dict.fromkeys(paths) if path not in seen]:
            with self.encoders[name].on(self.device):
                seen |= dict(zip(new, self.encoders[name].images([read_image(path) for path in new]), strict=True))
        return torch.stack([seen[path] for path in paths])

    def measure(self, paths: Sequence[Path], references: Sequence[Path], text: str) -> tuple[list[Cell], Cell]:
        """Images of one prompt => figures of each, and the diversity of all."""
        rows: list[Cell] = [{} for _ in paths]
        for name in self.encoders:
            drawn, own = self.embeddings(name, paths), self.embeddings(name, references)
            _add(rows, name, metrics.cosines(drawn, own).mean(1))
        if self.clip is not None:
            texts = [text, *((self.quality.good, self.quality.bad) if self.quality else ())]
            with self.clip.on(self.device):
                said = self.clip.texts(texts)
                scale = self.clip.logit_scale
            cosines = metrics.cosines(self.embeddings("clip_i", paths), said)
            _add(rows, "clip_t", cosines[:, 0])
            if self.quality:
                # CLIP-IQA, Wang et al. 2022 (arXiv:2207.12396), Eq. 2, with the encoder's own temperature.
                _add(rows, "quality", (scale * cosines[:, 1:]).softmax(1)[:, 0])
        eyes = self.embeddings(list(self.encoders)[-1], paths) if self.encoders and len(paths) > 1 else None
        return rows, {} if eyes is None else {"div": metrics.diversity([eyes])}


def _add(rows: list[Cell], name: str, values: Tensor) -> None:
    for row, value in zip(rows, values.tolist(), strict=True):
        row[name] = value


def measures_with(clip: Clip | None, dino: Dino | None, quality: Quality | None) -> set[str]:
    """What can be measured."""
    by_clip = {"clip_i", "clip_t", "div"} | ({"quality"} if quality else set()) if clip else set()
    return by_clip | ({"dino", "div"} if dino else set())


def references_of(row: Row, data: DreamBoothData) -> list[Path]:
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
        prompt = without(concept.identifier, prompt)
    return prompt


def per_seed(cells: Iterable[tuple[int, Cell]], measure: str) -> dict[int, float]:
    """Cells with the seed of their fit => the mean of a measure for each seed."""
    found: dict[int, list[float]] = {}
    for seed, cell in cells:
        if measure in cell:
            found.setdefault(seed, []).append(cell[measure])
    return {seed: fmean(values) for seed, values in found.items()}


class Verdict(NamedTuple):
    """Whether a finding holds: the difference of its two sides, fits of the same seed compared with each other."""

    finding: Hypothesis
    difference: Interval
    by_fit: list[float]
    more: float
    less: float
    said: str


def judge(finding: Hypothesis, figure: Figure, cells: Mapping[tuple[int, int], Cell]) -> Verdict | None:
    """The verdict on a claim, none if its measure has no encoder; `cells` are by place of row and seed of fit."""
    sides = [
        per_seed(
            ((seed, cell) for (place, seed), cell in cells.items() if figure.rows[place].holds(side)), finding.measure
        )
        for side in (finding.more, finding.less)
    ]
    common = [seed for seed in sides[0] if seed in sides[1]]
    if not common:
        return None
    by_fit = [sides[0][seed] - sides[1][seed] for seed in common]
    difference = interval(by_fit)
    if difference.low is None or difference.high is None:
        said = "not told apart: one fit each has no interval"
    elif difference.low > 0:
        said = "holds"
    else:
        said = "does not hold: the opposite does" if difference.high < 0 else "not told apart: the interval holds 0"
    return Verdict(finding, difference, by_fit, fmean(sides[0].values()), fmean(sides[1].values()), said)
