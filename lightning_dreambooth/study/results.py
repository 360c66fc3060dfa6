"""Results of a study: measured images, verdicts, and tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from lightning_dreambooth.callbacks.validation import TABLE
from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.evaluation.encoders import Encoders
from lightning_dreambooth.evaluation.intervals import Interval, bootstrap_interval, student_interval
from lightning_dreambooth.evaluation.metrics import measured_by
from lightning_dreambooth.evaluation.paper_protocol import COLUMNS, PUBLISHED
from lightning_dreambooth.evaluation.tables import read_csv, read_json, write_csv
from lightning_dreambooth.study.figures import Figure, FigureRow
from lightning_dreambooth.study.fits import Fit, benchmark_folder
from lightning_dreambooth.study.measuring import (
    CachedEncoders,
    Cell,
    Verdict,
    decide,
    instance_paths,
    per_seed,
    row_text,
)
from lightning_dreambooth.study.reading import Study
from lightning_dreambooth.study.tasks import RenderSettings, dreambench_subject, image_paths

Place = tuple[int, int]  # number of a row in its figure, and seed of the fit that drew it


@dataclass(frozen=True)
class Results:
    """Everything that a report shows.

    Attributes:
        fits: The fits.
        histories: Metrics that each fit measured while it trained, by name of the fit.
        files: The images of each figure, by place.
        cells: The metrics of these images, by place.
        images: A row per image.
        verdicts: The verdicts on the hypotheses.
        tests: The paper's metrics of each fit of a dreambench study, by name of the fit.
    """

    fits: Sequence[Fit]
    histories: Mapping[str, Sequence[Mapping[str, float]]]
    files: Mapping[str, Mapping[Place, Sequence[Path]]]
    cells: Mapping[str, Mapping[Place, Cell]]
    images: Sequence[Mapping[str, Any]]
    verdicts: Sequence[Verdict]
    tests: Mapping[str, Mapping[str, Any]]


class MeasuredRow(NamedTuple):
    """The images of one row of a figure, drawn by one fit, with their metrics.

    Attributes:
        figure: Key of the figure.
        place: Number of the row and seed of the fit.
        files: The images.
        cell: Metrics of the row.
        images: For each image, a row of the table of images.
    """

    figure: str
    place: Place
    files: list[Path]
    cell: Cell
    images: list[dict[str, Any]]


def gather(
    study: Study, jobs: Mapping[str, Job], fits: Sequence[Fit], settings: Mapping[str, RenderSettings]
) -> Results:
    """Measures the images of all figures, and reads the metrics of all fits and tests."""
    rows = list(_measured(study, jobs, fits, settings))
    keys = list(study.figures)
    files = {key: {row.place: row.files for row in rows if row.figure == key} for key in keys}
    cells = {key: {row.place: row.cell for row in rows if row.figure == key} for key in keys}
    verdicts = [
        decide(hypothesis, study.figures[hypothesis.figure], cells[hypothesis.figure])
        for hypothesis in study.spec.findings
    ]
    tests = {
        fit.name: read_json(benchmark_folder(fit, jobs[fit.variant], subject) / "summary.json")
        for fit in fits if (subject := dreambench_subject(study, fit))
    }  # fmt: skip
    return Results(
        fits, {fit.name: read_csv(fit.folder / TABLE) for fit in fits}, files, cells,
        [image for row in rows for image in row.images], [verdict for verdict in verdicts if verdict], tests,
    )  # fmt: skip


def _measured(
    study: Study, jobs: Mapping[str, Job], fits: Sequence[Fit], settings: Mapping[str, RenderSettings]
) -> Iterator[MeasuredRow]:
    """Every row of every figure, by each fit of its variant."""
    cached: dict[Encoders, CachedEncoders] = {}  # so that each image is embedded once
    for figure in study.figures.values():
        for number, row in enumerate(figure.rows):
            job = jobs[row.variant]
            encoders, device = job.callbacks.fidelity.encoders, job.trainer.strategy.root_device
            cached.setdefault(encoders, CachedEncoders(encoders, device, study.spec.quality))
            instances = instance_paths(row, jobs[figure.spec.references or row.variant].data)
            text = row_text(row, job.data)
            for fit in fits:
                if fit.variant == row.variant:
                    files = image_paths(fit, {row.lora_scale: row.requests}, settings[row.variant])
                    by_image, diversity = cached[encoders].measure(files, instances, text)
                    cell = {name: fmean(metrics[name] for metrics in by_image) for name in by_image[0]} | diversity
                    images = _image_rows(figure, row, fit, text, list(zip(files, by_image, strict=True)))
                    yield MeasuredRow(figure.key, (number, fit.seed), files, cell, images)


def _image_rows(
    figure: Figure, row: FigureRow, fit: Fit, text: str, measured: Sequence[tuple[Path, Cell]]
) -> list[dict[str, Any]]:
    made_by = {"figure": figure.key, **row.coordinates, "variant": row.variant, "fit_seed": fit.seed}
    return [
        made_by | {"seed": request.seed, "text": text} | cell | {"file": str(path)}
        for request, (path, cell) in zip(row.requests, measured, strict=True)
    ]


def row_intervals(cells: Mapping[Place, Cell], number: int) -> dict[str, Interval]:
    """The metrics of a row, with intervals over fits."""
    row_cells = [(seed, cell) for (row, seed), cell in cells.items() if row == number]
    values = {metric: per_seed(row_cells, metric) for metric in measured_by("study")}
    return {metric: student_interval(list(by_seed.values())) for metric, by_seed in values.items() if by_seed}


def interval_columns(name: str, value: Interval) -> dict[str, float | None]:
    """An interval as three columns of a table: mean, low and high."""
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}


def figure_table(figure: Figure, cells: Mapping[Place, Cell]) -> list[dict[str, Any]]:
    """The metrics of each row of images."""
    rows = []
    for number, row in enumerate(figure.rows):
        intervals = row_intervals(cells, number)
        columns: dict[str, Any] = {"figure": figure.key, **row.coordinates, "variant": row.variant}
        columns["images"] = len(row.seeds)
        for name, interval in intervals.items():
            columns |= interval_columns(name, interval)
        rows.append(columns)
    return rows


def fits_table(results: Results) -> list[dict[str, Any]]:
    """A row for each measurement of each fit."""
    return [
        {"variant": fit.variant, "fit_seed": fit.seed, **measured}
        for fit in results.fits
        for measured in results.histories[fit.name]
    ]


def verdicts_table(results: Results) -> list[dict[str, Any]]:
    """A row for each hypothesis."""
    return [
        {"claim": verdict.hypothesis.claim, "verdict": verdict.verdict, "measure": verdict.hypothesis.measure,
         "figure": verdict.hypothesis.figure, "more": verdict.more, "less": verdict.less,
         **interval_columns("difference", verdict.difference)}
        for verdict in results.verdicts
    ]  # fmt: skip


def benchmark_table(results: Results) -> list[dict[str, Any]]:
    """A row for each tested fit, their mean with intervals over subjects, and the published values."""
    rows: list[dict[str, Any]] = []
    for fit in results.fits:
        if summary := results.tests.get(fit.name):
            means = {name: summary["metrics"][name]["mean"] for name in COLUMNS if name in summary["metrics"]}
            ceiling = {f"{name}_ceiling": value for name, value in summary["ceiling"].items()}
            rows.append({"": summary["subject"], "fit_seed": fit.seed} | means | ceiling)
    mean: dict[str, Any] = {"": f"mean of {len({row[''] for row in rows})} subjects"}
    for name in COLUMNS:
        by_subject: dict[str, list[float]] = {}
        for row in rows:
            if name in row:
                by_subject.setdefault(row[""], []).append(row[name])
        if by_subject:
            interval = interval_columns(name, bootstrap_interval([fmean(values) for values in by_subject.values()]))
            mean |= {column: value for column, value in interval.items() if value is not None}
    return [*rows, mean, *({"": f"published: {method}"} | values for method, values in PUBLISHED.items())]


def write_tables(study: Study, results: Results, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Writes every table that has rows as CSV, and returns all of them."""
    tables = {
        "images": [dict(row) for row in results.images],
        "figures": [row for key, figure in study.figures.items() for row in figure_table(figure, results.cells[key])],
        "fits": fits_table(results),
        "findings": verdicts_table(results),
        "dreambench": benchmark_table(results) if results.tests else [],
    }
    for name, rows in tables.items():
        if rows:
            write_csv(folder / f"{name}.csv", rows)
        else:
            (folder / f"{name}.csv").unlink(missing_ok=True)  # of an earlier version of the study
    return tables
