"""Curves of a study over training steps, from the metrics of each fit while it trained."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from lightning_dreambooth.evaluation.intervals import Interval, student_interval
from lightning_dreambooth.evaluation.metrics import measured_by
from lightning_dreambooth.study import plots
from lightning_dreambooth.study.results import Results

Rows = Mapping[int, list[Mapping[str, float]]]  # step => the metrics of each fit of a variant
IDENTITY = ("clip_i", "dino")
PROMPT = "clip_t"


def training_curves(results: Results) -> list[str]:
    """Identity against prompt fidelity over the steps of each variant, then each metric over steps, as SVG."""
    by_variant: dict[str, dict[int, list[Mapping[str, float]]]] = {}
    for fit in results.fits:
        for row in results.histories[fit.name]:
            by_variant.setdefault(fit.variant, {}).setdefault(int(row["step"]), []).append(row)
    images = []
    for identity in IDENTITY:
        paths = {variant: _path(rows, identity) for variant, rows in by_variant.items()}
        paths = {variant: path for variant, path in paths.items() if path}
        if paths:
            images.append(plots.paths("identity against prompt, over steps", PROMPT, identity, paths))
    for name in _names(results):
        lines = {variant: _over_steps(name, rows) for variant, rows in by_variant.items()}
        images.append(plots.curves(name, "step", {variant: line for variant, line in lines.items() if line}))
    return images


def _names(results: Results) -> list[str]:
    """The metrics that have curves, in the order of METRICS, with the suffix of another encoder."""
    measured = {name for rows in results.histories.values() for row in rows for name in row}
    return [
        name
        for metric in measured_by("validation")
        for name in sorted(measured)
        if name.split("/")[0] == metric and "_under_" not in name and not name.startswith("score/")
    ]


def _path(rows: Rows, identity: str) -> Sequence[tuple[int, float, float]]:
    """(step, prompt, identity) of each step at which both were measured, as means over fits."""
    return [
        (step, fmean(row[PROMPT] for row in measured), fmean(row[identity] for row in measured))
        for step, measured in sorted(rows.items())
        if {identity, PROMPT} <= measured[0].keys()
    ]


def _over_steps(name: str, rows: Rows) -> list[tuple[float, Interval]]:
    points = [(step, [row[name] for row in measured if name in row]) for step, measured in sorted(rows.items())]
    return [(step, student_interval(values)) for step, values in points if values]
