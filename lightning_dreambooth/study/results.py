"""What a study has found: measured, and written as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_dreambooth.callbacks.paper_benchmark import COLUMNS, PUBLISHED
from lightning_dreambooth.callbacks.validation import TABLE
from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.evaluation import metrics
from lightning_dreambooth.evaluation.tables import read_csv, read_json, write_csv
from lightning_dreambooth.study.drawing import RenderSettings, images_of
from lightning_dreambooth.study.fits import Fitted, benchmark_folder
from lightning_dreambooth.study.measuring import (
    MEASURES,
    CachedEncoders,
    Cell,
    Interval,
    Verdict,
    interval,
    judge,
    per_seed,
    references_of,
    text_of,
)
from lightning_dreambooth.study.reading import Figure, Study
from lightning_dreambooth.study.tasks import subject_of

Place = tuple[int, int]  # of a row in its figure, and the seed of the fit that drew it


@dataclass(frozen=True)
class Results:
    """Everything that a report shows.

    Attributes:
        fits: The fits.
        histories: What each fit measured while it trained, by name.
        files: The images of each figure, by place.
        cells: Their figures, by place.
        images: A row per image.
        verdicts: What became of the findings.
        tests: The paper's protocol for each fit of a dreambench study.
    """

    fits: Sequence[Fitted]
    histories: Mapping[str, Sequence[Mapping[str, float]]]
    files: Mapping[str, Mapping[Place, Sequence[Path]]]
    cells: Mapping[str, Mapping[Place, Cell]]
    images: Sequence[Mapping[str, Any]]
    verdicts: Sequence[Verdict]
    tests: Mapping[str, Mapping[str, Any]]


def gather(
    study: Study, jobs: Mapping[str, DreamBoothCLI], fits: Sequence[Fitted], brushes: Mapping[str, RenderSettings]
) -> Results:
    """Measures what has been drawn, and reads what has been fitted and tested."""
    files: dict[str, dict[Place, Sequence[Path]]] = {}
    cells: dict[str, dict[Place, Cell]] = {}
    images: list[dict[str, Any]] = []
    eyes: dict[
        tuple[object, object], CachedEncoders
    ] = {}  # one for each pair of encoders, so that it sees each image once
    for key, figure in study.figures.items():
        files[key], cells[key] = {}, {}
        for place, row in enumerate(figure.rows):
            job = jobs[row.variant]
            data, encoders = job.datamodule, (job.fidelity.clip, job.fidelity.dino)
            if encoders not in eyes:
                eyes[encoders] = CachedEncoders(*encoders, job.trainer.strategy.root_device, study.spec.quality)
            eye = eyes[encoders]
            text, whose = text_of(row, data), figure.spec.references or row.variant
            references = references_of(row, jobs[whose].datamodule)
            for fit in fits:
                if fit.variant != row.variant:
                    continue
                drawn = images_of(fit.export, row.requests, brushes[row.variant])
                each, together = eye.measure(drawn, references, text)
                files[key][place, fit.seed] = drawn
                cells[key][place, fit.seed] = {name: fmean(one[name] for one in each) for name in each[0]} | together
                images += [
                    {"figure": key, **row.coordinates, "variant": row.variant, "fit_seed": fit.seed}
                    | {"seed": request.seed, "text": text} | one | {"file": str(path)}
                    for request, one, path in zip(row.requests, each, drawn, strict=True)
                ]  # fmt: skip
    verdicts = [judge(each, study.figures[each.figure], cells[each.figure]) for each in study.spec.findings]
    tests = {
        fit.name: read_json(benchmark_folder(fit, jobs[fit.variant], subject) / "summary.json")
        for fit in fits if (subject := subject_of(study, fit))
    }  # fmt: skip
    histories = {fit.name: read_csv(fit.folder / TABLE) for fit in fits}
    return Results(fits, histories, files, cells, images, [each for each in verdicts if each], tests)


def row_intervals(cells: Mapping[Place, Cell], place: int) -> dict[str, Interval]:
    """The measures of a row, with intervals over fits."""
    mine = [(seed, cell) for (where, seed), cell in cells.items() if where == place]
    found = {measure: per_seed(mine, measure) for measure in MEASURES}
    return {measure: interval(list(values.values())) for measure, values in found.items() if values}


def columns_of(name: str, value: Interval) -> dict[str, float | None]:
    """A measure as three columns of a table."""
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}


def figure_table(figure: Figure, cells: Mapping[Place, Cell]) -> list[dict[str, Any]]:
    """A row of figures for each row of images."""
    rows = []
    for place, row in enumerate(figure.rows):
        measured = row_intervals(cells, place)
        columns = {key: value for name, of in measured.items() for key, value in columns_of(name, of).items()}
        about = {"figure": figure.key, **row.coordinates, "variant": row.variant, "images": len(row.seeds)}
        rows.append(about | columns)
    return rows


def fits_table(results: Results) -> list[dict[str, Any]]:
    """A row for each measurement of each fit."""
    return [
        {"variant": fit.variant, "fit_seed": fit.seed, **measured}
        for fit in results.fits
        for measured in results.histories[fit.name]
    ]


def verdicts_table(results: Results) -> list[dict[str, Any]]:
    """A row for each finding."""
    return [
        {"claim": each.finding.claim, "verdict": each.said, "measure": each.finding.measure,
         "figure": each.finding.figure, "more": each.more, "less": each.less,
         **columns_of("difference", each.difference)}
        for each in results.verdicts
    ]  # fmt: skip


def benchmark_table(results: Results) -> list[dict[str, Any]]:
    """A row for each tested fit, their mean with intervals over subjects, and the published numbers."""
    rows: list[dict[str, Any]] = []
    for fit in results.fits:
        if summary := results.tests.get(fit.name):
            figures, ceiling = summary["figures"], summary["ceiling"]
            means = {name: figures[name]["mean"] for name in COLUMNS if name in figures}
            own = {f"{name}_ceiling": value for name, value in ceiling.items()}
            rows.append({"": summary["subject"], "fit_seed": fit.seed} | means | own)
    mean: dict[str, Any] = {"": f"mean of {len({row[''] for row in rows})} subjects"}
    for name in COLUMNS:
        by_subject: dict[str, list[float]] = {}
        for row in rows:
            if name in row:
                by_subject.setdefault(row[""], []).append(row[name])
        if by_subject:
            values = [fmean(each) for each in by_subject.values()]
            low, high = metrics.bootstrap_interval(values)
            mean |= {name: fmean(values), f"{name}_low": low, f"{name}_high": high}
    return [*rows, mean, *({"": f"published: {who}"} | figures for who, figures in PUBLISHED.items())]


def write_tables(study: Study, results: Results, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Writes every table that has rows as CSV, and returns all of them."""
    tables = {
        "images": [dict(row) for row in results.images],
        "figures": [row for key, each in study.figures.items() for row in figure_table(each, results.cells[key])],
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
