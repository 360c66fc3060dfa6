"""Metrics of a run by step: the best step, and whether patience has run out."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_dreambooth.diffusion.cost import TRAINING_ROW

MetricsRow = Mapping[str, Any]  # `step` and the metrics measured there, by name


def best(history: Sequence[MetricsRow]) -> MetricsRow | None:
    """The row with the highest score, the earliest of equal ones; None before a score is above zero."""
    return next(iter(best_first(history)), None)


def best_first(history: Sequence[MetricsRow]) -> list[MetricsRow]:
    """The rows with a score above zero, the highest first; of equal scores, the earliest first."""
    return sorted((row for row in history if row.get("score", 0) > 0), key=lambda row: (-row["score"], row["step"]))


def patience_ends(history: Sequence[MetricsRow], patience: int | None) -> bool:
    """Whether the last `patience` scores are not better than the best before them; never if `patience` is None."""
    best_row = best(history)
    if best_row is None or patience is None:
        return False
    return sum("score" in row and row["step"] > best_row["step"] for row in history) >= patience


def without_scores(history: Sequence[MetricsRow]) -> list[MetricsRow]:
    """The history without scores and their parts."""
    return [{name: row[name] for name in row if not name.startswith("score")} for row in history]


def describe_choice(history: Sequence[MetricsRow]) -> str:
    """The best step with its score, and how its parts differ from those of the last step; empty without a score."""
    best_row, last = best(history), next((row for row in reversed(history) if "score" in row), None)
    if best_row is None or last is None:
        return ""
    parts = [name for name in best_row if name.startswith("score/")]
    text = f"best step {best_row['step']}, score {best_row['score']:.3f}"
    text += f" ({', '.join(f'{name[6:]} {best_row[name]:.2f}' for name in parts)})"
    if best_row is last:
        return f"{text}, the last one"
    differences = ", ".join(f"{name[6:]} {best_row[name] - last[name]:+.2f}" for name in parts)
    return f"{text}; the last step {last['step']} scores {last['score']:.3f}; the best one differs by {differences}"


def share_of_training(evaluations: int, rows: int) -> str:
    """Cost of measuring relative to training this number of rows, as text."""
    return f"{evaluations} UNet evaluations, {evaluations / (TRAINING_ROW * rows):.0%} of what training takes"
