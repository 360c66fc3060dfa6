"""The report of a study: one HTML file that opens from disk, with every image and curve in it."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.data.concepts import TrainingImage
from lightning_dreambooth.data.dataset import concept_images
from lightning_dreambooth.data.images import read_image
from lightning_dreambooth.evaluation.tables import write_text
from lightning_dreambooth.study import plots
from lightning_dreambooth.study.measuring import MEASURES, Interval, interval
from lightning_dreambooth.study.reading import Figure, Study
from lightning_dreambooth.study.results import Place, Results, row_intervals

SHOWN_PX = 256  # larger images are shown so wide, to keep the file small
MAX_SHOWN = 48  # training images shown at most
OVER_STEPS = ("score", "clip_i", "dino", "clip_t")  # of the fits


def image(path: Path) -> str:
    """An image => an address that an `img` shows without a file."""
    image = read_image(path)
    image.thumbnail((SHOWN_PX, SHOWN_PX))
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def number(value: Interval | None) -> str:
    """A mean with half of its interval."""
    if value is None:
        return ""
    return f"{value.mean:.3f}" if value.low is None else f"{value.mean:.3f} ± {value.mean - value.low:.3f}"


def label(settings: Mapping[str, Any]) -> str:
    """What tells a row from the others, in words."""
    return ", ".join(f"{key.replace('_', ' ')} {value if value != '' else 'none'}" for key, value in settings.items())


def shared(figure: Figure) -> dict[str, Any]:
    """What all rows of a figure have in common."""
    if not figure.rows:
        return {}
    first = figure.rows[0]
    return {key: value for key, value in first.coordinates.items() if key not in first.differs}


def figure_block(
    figure: Figure, results: Results, jobs: Mapping[str, DreamBoothCLI], seeds: Sequence[int]
) -> dict[str, Any]:
    """What the template shows of a figure."""
    about = {"key": figure.key, "title": figure.title, "note": figure.spec.note, "settings": label(shared(figure))}
    if figure.spec.training_pictures:
        sets = [(name, trained_on(jobs[name])) for name in figure.variants]
        rows = [{"label": name, "strips": [("", [image(each.path) for each in own[:MAX_SHOWN]])]} for name, own in sets]
        return about | {"rows": rows, "measures": [], "curves": []}
    files, cells = results.files[figure.key], results.cells[figure.key]
    rows, measured = [], [row_intervals(cells, place) for place in range(len(figure.rows))]
    names = [name for name in MEASURES if any(name in each for each in measured)]
    for place, row in enumerate(figure.rows):
        strips = [(f"fit seed {seed}", [image(path) for path in files[place, seed]]) for seed in seeds]
        figures = [number(measured[place].get(name)) for name in names]
        rows.append({"label": label(row.differs) or row.variant, "strips": strips, "figures": figures})
    return about | {"rows": rows, "measures": names, "curves": figure_curves(figure, cells, names)}


def trained_on(job: DreamBoothCLI) -> list[TrainingImage]:
    """The instance images of a variant."""
    data = job.datamodule
    return [
        each for concept in concept_images(data.concepts, 0, data.num_instance_images) for each in concept.instances
    ]


def figure_curves(figure: Figure, cells: Mapping[Place, Any], names: Sequence[str]) -> list[str]:
    """Each measure over each number in which the rows of a figure differ, a line for each of the other settings."""
    drawn = []
    for axis in figure.rows[0].differs:
        values = [row.differs.get(axis) for row in figure.rows]
        if axis == "seed" or not all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
            continue
        for name in names:
            lines: dict[str, list[tuple[float, Interval]]] = {}
            for place, row in enumerate(figure.rows):
                others = {key: value for key, value in row.differs.items() if key != axis}
                measured = row_intervals(cells, place)
                if name in measured:
                    lines.setdefault(label(others), []).append((row.differs[axis], measured[name]))
            if lines:
                ordered = {key: sorted(line, key=lambda point: point[0]) for key, line in lines.items()}
                drawn.append(plots.curves(name, axis.replace("_", " "), ordered))
    return drawn


def training_curves(results: Results) -> list[str]:
    """Identity against prompt fidelity over the steps of each variant, and both and the score over steps."""
    by_variant: dict[str, dict[int, list[Mapping[str, float]]]] = {}
    for fit in results.fits:
        for row in results.histories[fit.name]:
            by_variant.setdefault(fit.variant, {}).setdefault(int(row["step"]), []).append(row)

    def over(name: str, rows: Mapping[int, list[Mapping[str, float]]]) -> list[tuple[float, Interval]]:
        points = [(step, [row[name] for row in each if name in row]) for step, each in sorted(rows.items())]
        return [(step, interval(values)) for step, values in points if values]

    drawn = []
    every = {name for rows in results.histories.values() for row in rows for name in row}
    for identity in ("clip_i", "dino"):
        courses = {}
        for variant, rows in by_variant.items():
            measured = [(step, each) for step, each in sorted(rows.items()) if {identity, "clip_t"} <= each[0].keys()]
            courses[variant] = [
                (step, fmean(row["clip_t"] for row in each), fmean(row[identity] for row in each))
                for step, each in measured
            ]
        courses = {variant: course for variant, course in courses.items() if course}
        if courses:
            drawn.append(plots.paths("identity against prompt, over steps", "clip_t", identity, courses))
    for name in [*OVER_STEPS, *sorted(each for each in every if each.startswith("pres"))]:
        if name in every:
            lines = {variant: over(name, rows) for variant, rows in by_variant.items()}
            drawn.append(plots.curves(name, "step", {variant: line for variant, line in lines.items() if line}))
    return drawn


def write_page(
    study: Study, results: Results, jobs: Mapping[str, DreamBoothCLI],
    tables: Mapping[str, Sequence[Mapping[str, Any]]], file: Path,
) -> None:  # fmt: skip
    """Writes the report."""
    environment = Environment(
        loader=PackageLoader("lightning_dreambooth", "study"), autoescape=select_autoescape(default=True),
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "label": label}
    records = [(fit, fit.record) for fit in results.fits]
    configs = {name: job.config_text for name, job in jobs.items()}
    text = environment.get_template("page.html.jinja").render(
        title=study.spec.title or study.name, note=study.spec.note, study=study.name,
        variants=list(study.variants), seeds=study.spec.seeds,
        verdicts=results.verdicts, curves=training_curves(results),
        figures=[figure_block(each, results, jobs, study.spec.seeds) for each in study.figures.values()],
        dreambench=tables["dreambench"], records=records, configs=configs, images=len(results.images),
        minutes=sum(record.get("seconds", 0) for _, record in records) / 60,
        versions=records[0][1].get("versions", {}) if records else {},
    )  # fmt: skip
    write_text(file, text)
