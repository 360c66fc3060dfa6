"""Report of a study: one HTML file with every image and curve in it."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.data.concepts import TrainingImage
from lightning_dreambooth.data.images import read_image
from lightning_dreambooth.evaluation.intervals import Interval
from lightning_dreambooth.evaluation.metrics import measured_by
from lightning_dreambooth.evaluation.paper_protocol import COLUMNS, NOTE
from lightning_dreambooth.evaluation.tables import write_text
from lightning_dreambooth.study import plots
from lightning_dreambooth.study.curves import training_curves
from lightning_dreambooth.study.figures import Figure
from lightning_dreambooth.study.reading import Study
from lightning_dreambooth.study.results import Place, Results, row_intervals

SHOWN_PX = 256  # larger images are reduced to this side, to keep the file small
MAX_SHOWN = 48  # training images shown of a variant


def image(path: Path) -> str:
    """An image file => a data URL."""
    thumbnail = read_image(path)
    thumbnail.thumbnail((SHOWN_PX, SHOWN_PX))
    file = io.BytesIO()
    thumbnail.save(file, format="WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def number(value: Interval | None) -> str:
    """A mean, with half of its interval if there is one; empty for None."""
    if value is None:
        return ""
    return f"{value.mean:.3f}" if value.low is None else f"{value.mean:.3f} ± {value.mean - value.low:.3f}"


def label(settings: Mapping[str, Any]) -> str:
    """Settings as text, such as `steps 24, guidance scale 4`."""
    return ", ".join(f"{key.replace('_', ' ')} {value if value != '' else 'none'}" for key, value in settings.items())


def shared_settings(figure: Figure) -> dict[str, Any]:
    """The settings that all rows of a figure share."""
    if not figure.rows:
        return {}
    first = figure.rows[0]
    return {key: value for key, value in first.coordinates.items() if key not in first.differs}


def figure_block(figure: Figure, results: Results, jobs: Mapping[str, Job], seeds: Sequence[int]) -> dict[str, Any]:
    """A figure as values of the template."""
    settings = label(shared_settings(figure))
    block = {"key": figure.key, "title": figure.title, "note": figure.spec.note, "settings": settings}
    if figure.spec.training_pictures:
        rows = [
            {"label": name, "strips": [("", [image(shown.path) for shown in training_images(jobs[name])[:MAX_SHOWN]])]}
            for name in figure.variants
        ]
        return block | {"rows": rows, "measures": [], "curves": []}
    files, cells = results.files[figure.key], results.cells[figure.key]
    rows, measured = [], [row_intervals(cells, place) for place in range(len(figure.rows))]
    names = [name for name in measured_by("study") if any(name in metrics for metrics in measured)]
    for place, row in enumerate(figure.rows):
        strips = [(f"fit seed {seed}", [image(path) for path in files[place, seed]]) for seed in seeds]
        values = [number(measured[place].get(name)) for name in names]
        rows.append({"label": label(row.differs) or row.variant, "strips": strips, "metrics": values})
    return block | {"rows": rows, "measures": names, "curves": figure_curves(figure, cells, names)}


def training_images(job: Job) -> list[TrainingImage]:
    """The instance images of a variant."""
    return [image for concept in job.data.images(training=False) for image in concept.instances]


def figure_curves(figure: Figure, cells: Mapping[Place, Any], names: Sequence[str]) -> list[str]:
    """Each metric over each numeric setting in which rows differ, as SVG; a line per combination of other settings."""
    images = []
    for axis in figure.rows[0].differs:
        values = [row.differs.get(axis) for row in figure.rows]
        if axis == "seed" or not all(type(value) in (int, float) for value in values):
            continue
        for name in names:
            if lines := _lines(figure, cells, axis, name):
                images.append(plots.curves(name, axis.replace("_", " "), lines))
    return images


def _lines(figure: Figure, cells: Mapping[Place, Any], axis: str, name: str) -> dict[str, list[tuple[float, Interval]]]:
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for place, row in enumerate(figure.rows):
        others = {key: value for key, value in row.differs.items() if key != axis}
        measured = row_intervals(cells, place)
        if name in measured:
            lines.setdefault(label(others), []).append((row.differs[axis], measured[name]))
    return {key: sorted(line, key=lambda point: point[0]) for key, line in lines.items()}


def write_page(
    study: Study, results: Results, jobs: Mapping[str, Job], tables: Mapping[str, Sequence[Mapping[str, Any]]],
    file: Path,
) -> None:  # fmt: skip
    """Writes the report."""
    environment = Environment(
        loader=PackageLoader("lightning_dreambooth", "study"), autoescape=select_autoescape(default=True),
        trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"number": number, "label": label}
    records = [(fit, fit.record) for fit in results.fits]
    text = environment.get_template("page.html.jinja").render(
        title=study.spec.title or study.name, note=study.spec.note, study=study.name,
        variants=list(study.variants), seeds=study.spec.seeds,
        verdicts=results.verdicts, curves=training_curves(results),
        figures=[figure_block(figure, results, jobs, study.spec.seeds) for figure in study.figures.values()],
        dreambench=tables["dreambench"], columns=COLUMNS, benchmark_note=NOTE,
        records=records, configs={name: job.config_text for name, job in jobs.items()}, images=len(results.images),
        minutes=sum(record.get("seconds", 0) for _, record in records) / 60,
        versions=records[0][1].get("versions", {}) if records else {},
    )  # fmt: skip
    write_text(file, text)
