"""Figures for people and programs: tables as CSV, JSON and Markdown, and what is said of the step that is best."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_dreambooth.evaluation.prompts import TRAINING_ROW
from lightning_dreambooth.files import replaced

Row = Mapping[str, Any]


def write_text(path: Path, text: str) -> None:
    """Writes a file, all or nothing."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Rows => a table with every column that any row has; what a row lacks stays empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, float]]:
    """A table of numbers => its rows, without what is empty; no file, no rows."""
    if not path.is_file():
        return []
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def read_json(path: Path) -> dict[str, Any]:
    """Plain values that `write_json` has written."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def write_json(path: Path, content: Row) -> None:
    """Writes plain values."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns and rows => a Markdown table whose columns are as wide as their longest cell."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def metrics_table(figures: Row, untuned: Row, ceiling: Row) -> str:
    """Each figure beside what the untuned model has and what the instance images themselves reach."""
    names = [name for name in figures if name != "step"]
    rows = [[name, *(_rounded(each.get(name)) for each in (figures, untuned, ceiling))] for name in names]
    return markdown(["figure", "value", "untuned", "ceiling"], rows)


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def best(history: Sequence[Row]) -> Row | None:
    """The row with the highest score, the earliest of equals; none before a score is above zero."""
    return next(iter(best_first(history)), None)


def best_first(history: Sequence[Row]) -> list[Row]:
    """The rows with a score above zero, the highest first, the earliest of equals before the others."""
    return sorted((row for row in history if row.get("score", 0) > 0), key=lambda row: (-row["score"], row["step"]))


def choice(history: Sequence[Row]) -> str:
    """Which step is best, what it scores, and what is traded against the last one."""
    chosen, last = best(history), next((row for row in reversed(history) if "score" in row), None)
    if chosen is None or last is None:
        return ""
    parts = [name for name in chosen if name.startswith("score/")]
    said = f"best step {chosen['step']}, score {chosen['score']:.3f}"
    said += f" ({', '.join(f'{name[6:]} {chosen[name]:.2f}' for name in parts)})"
    if chosen is last:
        return f"{said}, the last one"
    traded = ", ".join(f"{name[6:]} {chosen[name] - last[name]:+.2f}" for name in parts)
    return f"{said}; the last step {last['step']} scores {last['score']:.3f}; traded against it: {traded}"


def share_of_training(evaluations: int, rows: int) -> str:
    """What measuring costs beside the training of so many rows, in evaluations of the UNet."""
    return f"{evaluations} UNet evaluations, {evaluations / (TRAINING_ROW * rows):.0%} of what training takes"
