"""What was measured at each step of a run: which step is best, and when there is no hope for a better one."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_dreambooth.diffusion.cost import TRAINING_ROW

Row = Mapping[str, Any]  # `step` and the metrics measured there, by name


def best(history: Sequence[Row]) -> Row | None:
    """The row with the highest score, the earliest of equals; None before a score is above zero."""
    return next(iter(best_first(history)), None)


def best_first(history: Sequence[Row]) -> list[Row]:
    """The rows with a score above zero, the highest first, the earliest of equals before the others."""
    return sorted((row for row in history if row.get("score", 0) > 0), key=lambda row: (-row["score"], row["step"]))


def patience_ends(history: Sequence[Row], patience: int | None) -> bool:
    """Whether the last `patience` scores are not better than the best before them; None never ends."""
    chosen = best(history)
    if chosen is None or patience is None:
        return False
    return sum("score" in row and row["step"] > chosen["step"] for row in history) >= patience


def without_scores(history: Sequence[Row]) -> list[Row]:
    """The history with everything except scores."""
    return [{name: row[name] for name in row if not name.startswith("score")} for row in history]


def describe_choice(history: Sequence[Row]) -> str:
    """Which step is best, its score, and the differences of its parts from the last step; empty without a score."""
    chosen, last = best(history), next((row for row in reversed(history) if "score" in row), None)
    if chosen is None or last is None:
        return ""
    parts = [name for name in chosen if name.startswith("score/")]
    scored = f"best step {chosen['step']}, score {chosen['score']:.3f}"
    scored += f" ({', '.join(f'{name[6:]} {chosen[name]:.2f}' for name in parts)})"
    if chosen is last:
        return f"{scored}, the last one"
    differences = ", ".join(f"{name[6:]} {chosen[name] - last[name]:+.2f}" for name in parts)
    return f"{scored}; the last step {last['step']} scores {last['score']:.3f}; the best one differs by {differences}"


def share_of_training(evaluations: int, rows: int) -> str:
    """What measuring costs relative to the training of so many rows, in evaluations of the UNet."""
    return f"{evaluations} UNet evaluations, {evaluations / (TRAINING_ROW * rows):.0%} of what training takes"
