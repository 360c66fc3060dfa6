"""Config files of a model, read as plain values, and what every Stable Diffusion 1.x and 2.x has in common."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_dreambooth.errors import InputError

SCHEDULER = "scheduler/scheduler_config.json"
PREDICTION_TYPES = ("epsilon", "v_prediction")
NOISE_STEPS = 1000


@contextmanager
def readable_model(folder: Path) -> Iterator[None]:
    """Turns whatever the libraries raise for broken or hostile files into an InputError."""
    try:
        yield
    except Exception as error:  # it can be anything
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder} cannot be loaded as a model ({reason}); download it again") from error


def read_config(file: Path) -> dict[str, Any]:
    """A config file => its entries.

    Raises:
        InputError: if it does not hold a JSON object.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{file} is not a JSON object ({error}); download the model again") from error
