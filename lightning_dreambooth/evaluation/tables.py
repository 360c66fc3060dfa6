"""Tables of metrics as CSV, JSON and Markdown."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_dreambooth.evaluation.history import MetricsRow
from lightning_dreambooth.files import replaced


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[MetricsRow]) -> None:
    """Writes rows as a CSV table with every column of any row; a value that a row lacks is an empty cell."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, float]]:
    """A CSV table of numbers => its rows, without empty cells; no rows if there is no file."""
    if not path.is_file():
        return []
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def read_json(path: Path) -> dict[str, Any]:
    """Reads plain values that `write_json` has written."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes plain values atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns and rows => a Markdown table whose columns are as wide as their longest cell."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def three_digits(value: float | None) -> str:
    """A cosine or a score as text; empty for None."""
    return "" if value is None else f"{value:.3f}"


def metrics_table(metrics: MetricsRow, base: MetricsRow, ceiling: MetricsRow) -> str:
    """Each metric beside its values for the base model and for the instance images, as Markdown."""
    names = [name for name in metrics if name != "step"]
    rows = [[name, *(three_digits(values.get(name)) for values in (metrics, base, ceiling))] for name in names]
    return markdown(["metric", "value", "base", "ceiling"], rows)
