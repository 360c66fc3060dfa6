"""Bounds of numbers that a user gives."""

import math

from lightning_dreambooth.errors import InputError

Number = int | float
MAX_STEPS = 10_000_000  # of a run; Stable Diffusion itself had less than a million
MAX_SEED = 2**32 - 1  # what Lightning and NumPy take


def check_range(key: str, value: Number | None, low: Number, high: Number = math.inf, remedy: str = "") -> None:
    """Raises InputError unless a number is finite and lies in low ... high; None is allowed."""
    if value is None or (low <= value <= high and value < math.inf):
        return
    bounds = f"be {low:,} or more, and finite" if high == math.inf else f"lie in {low:,} ... {high:,}"
    raise InputError(f"{key} is {value}, must {bounds}{remedy and '; '}{remedy}")


def check_lora_scale(key: str, value: float) -> None:
    """Raises InputError unless a number can multiply what adapters add."""
    check_range(key, value, 0, 10, "1 adds the adapters as they were trained")


def check_above_zero(key: str, value: Number | None, remedy: str) -> None:
    """Raises InputError unless a number is finite and above 0; None is allowed."""
    if value is not None and not 0 < value < math.inf:
        raise InputError(f"{key} is {value}, must be above 0 and finite; {remedy}")
