"""Figures of a study as rows of images, and checks of the hypotheses about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from lightning_dreambooth.bounds import check_lora_scale
from lightning_dreambooth.diffusion.requests import MAX_IMAGES, Request, SamplingSettings, check_seed
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.metrics import measured_by
from lightning_dreambooth.study.spec import FigureSpec, Hypothesis, Sampling, StudySpec
from lightning_dreambooth.study.variants import DRAWN_BY, LORA_SCALE, NAME, Variant


@dataclass(frozen=True)
class FigureRow:
    """A row of images of one variant.

    Attributes:
        variant: Name of the variant.
        coordinates: Everything that decides the row besides the variant's config, by name.
        differs: The coordinates in which the rows of the figure differ.
        seeds: Seeds of the images.
    """

    variant: str
    coordinates: Mapping[str, Any]
    differs: Mapping[str, Any]
    seeds: range

    @property
    def requests(self) -> list[Request]:
        """The images of the row, one per seed."""
        prompt, *values = (self.coordinates[name] for name in DRAWN_BY)
        return [Request(prompt, seed, SamplingSettings(*values)) for seed in self.seeds]

    @property
    def lora_scale(self) -> float:
        """Factor of what adapters add."""
        return float(self.coordinates[LORA_SCALE])

    def matches(self, side: Mapping[str, Any]) -> bool:
        """Whether the row has all settings of one side of a hypothesis."""
        return all(name in self.coordinates and self.coordinates[name] == value for name, value in side.items())


@dataclass(frozen=True)
class Figure:
    """An expanded figure: its rows, or none if it shows the training images of its variants."""

    key: str
    spec: FigureSpec
    variants: Sequence[str]
    rows: Sequence[FigureRow]

    @property
    def title(self) -> str:
        """Heading in the report."""
        return self.spec.title or self.key


def expand_figure(key: str, spec: FigureSpec, study: StudySpec, variants: Mapping[str, Variant], path: Path) -> Figure:
    """The spec of a figure => the figure, with a row for each combination of its lists.

    Raises:
        InputError: if it cannot be drawn.
    """
    where = f"{path}: figure {key}"
    if not NAME.fullmatch(key):
        raise InputError(f"{where}: the key cannot name a folder; use letters, digits and . , = + - _")
    shown = list(variants) if spec.variants is None else spec.variants
    named = shown if spec.references is None else [*shown, spec.references]
    if unknown := [name for name in named if name not in variants]:
        raise InputError(f"{where} names the variant {unknown[0]!r}; there are {', '.join(variants)}")
    if spec.training_pictures:
        return Figure(key, spec, shown, [])
    if spec.prompt is None:
        raise InputError(f"{where} has no prompt; give one, or training_pictures: true")
    axes = {name: _axis_values(name, spec, study.sampling) for name in ("seed", *DRAWN_BY, LORA_SCALE)}
    number = study.sampling.num_images if spec.num_images is None else spec.num_images
    if not 1 <= number <= MAX_IMAGES or not shown or not all(axes.values()):
        raise InputError(
            f"{where} has no images: num_images must lie in 1 ... {MAX_IMAGES:,}, and every list must hold 1 or more"
        )
    return Figure(key, spec, shown, _rows(shown, axes, number, variants, where))


def _rows(
    shown: Sequence[str], axes: Mapping[str, Sequence[Any]], number: int, variants: Mapping[str, Variant], where: str
) -> list[FigureRow]:
    combinations = []
    for variant, *values in product(shown, *axes.values()):
        settings = dict(zip(axes, values, strict=True))
        try:
            check_seed(settings["seed"])
            check_lora_scale(LORA_SCALE, settings[LORA_SCALE])
            SamplingSettings(*(settings[name] for name in DRAWN_BY if name != "prompt"))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        combinations.append((variant, {**variants[variant].settings, **settings}))
    names = list(dict.fromkeys(name for _, coordinates in combinations for name in coordinates))
    varying = [name for name in names if len({str(coordinates.get(name)) for _, coordinates in combinations}) > 1]
    rows = []
    for variant, coordinates in combinations:
        differs = {name: coordinates[name] for name in varying if name in coordinates}
        seeds = range(coordinates["seed"], coordinates["seed"] + number)
        rows.append(FigureRow(variant, coordinates, differs, seeds))
    return rows


def _axis_values(name: str, spec: FigureSpec, sampling: Sampling) -> list[Any]:
    """The values of an axis: those of the figure, else that of the study's sampling."""
    value = getattr(spec, name)
    value = getattr(sampling, name) if value is None else value
    return value if isinstance(value, list) else [value]


def check_hypothesis(hypothesis: Hypothesis, figures: Mapping[str, Figure], spec: StudySpec, path: Path) -> None:
    """Raises InputError if a hypothesis names a figure, metric or rows that do not exist."""
    where = f"{path}: the finding {hypothesis.claim!r}"
    if hypothesis.figure not in figures:
        raise InputError(f"{where} names the figure {hypothesis.figure!r}; there are {', '.join(figures)}")
    if hypothesis.measure not in measured_by("study"):
        names = ", ".join(measured_by("study"))
        raise InputError(f"{where} names the metric {hypothesis.measure!r}; there are {names}")
    if hypothesis.measure == "quality" and spec.quality is None:
        raise InputError(f"{where} is about quality, which is not measured; give quality: {{good: ..., bad: ...}}")
    for side in (hypothesis.more, hypothesis.less):
        if not any(row.matches(side) for row in figures[hypothesis.figure].rows):
            raise InputError(f"{where}: no row of figure {hypothesis.figure} has {side}")
