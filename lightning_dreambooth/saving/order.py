"""Order of a run's states and exports by what they hold; the times of files change with copies and clocks."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.tables import read_json
from lightning_dreambooth.saving.checkpoint_io import RESUMES, read_resumes
from lightning_dreambooth.saving.runs import step_name

STATES = "states"
EXPORTS = "exports"
RECORD = "export.json"  # in an export: its step, and how often the run had been resumed


class Saved(NamedTuple):
    """A state or export of a run. The larger of two is the newer: of the later resume and, in it, the later step.

    Attributes:
        resumes: How often the run had been resumed before; 0 if the file does not say, infinite if it cannot be read.
        step: The optimizer step.
        path: The file or folder.
    """

    resumes: float
    step: int
    path: Path


def newest_first(folder: Path) -> list[Saved]:
    """The states or exports in a folder. Everything with another name than `fit` gives is the user's own."""
    paths = folder.iterdir() if folder.is_dir() else ()
    steps = {path: step for path in paths if (step := _step(path)) is not None}
    return sorted((Saved(_resumes(path), step, path) for path, step in steps.items()), reverse=True)


def outdated(folder: Path, keep: int, step: int) -> list[Path]:
    """The states or exports that a run at an optimizer step no longer needs: all that it has passed but the newest.

    Those of later steps stay, because a run that has resumed an early state has nothing yet in their place. So does
    what cannot be read.
    """
    passed = [saved for saved in newest_first(folder) if saved.step <= step and saved.resumes < math.inf]
    return [saved.path for saved in passed[keep:] if saved.step < step]


def next_resumes(run: Path) -> int:
    """How often a run will have been resumed once it starts now; 0 if it has saved nothing.

    The exports count only if no state is left: a killed `fit` may have exported the step that it has resumed once more.
    """
    saved = newest_first(run / STATES) or newest_first(run / EXPORTS)
    return 1 + max((int(each.resumes) for each in saved if each.resumes < math.inf), default=-1)


def _step(path: Path) -> int | None:
    match = re.fullmatch(r"step-(\d+)(\.ckpt)?", path.name)
    if match is None or match[0] != step_name(int(match[1])) + (match[2] or ""):
        return None
    ours = path.is_file() if match[2] else path.is_dir() and not path.is_symlink()
    return int(match[1]) if ours else None


def _resumes(path: Path) -> float:
    try:
        if path.is_file():
            return float(read_resumes(path))
        record = read_json(path / RECORD) if (path / RECORD).is_file() else {}
        return float(int(record.get(RESUMES, 0)))
    except (InputError, OSError, ValueError, TypeError, OverflowError):  # what a broken record may raise
        return math.inf
