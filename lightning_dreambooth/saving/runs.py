"""Runs by name: what a run is called, and that its folder is nobody else's."""

import itertools
import os
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from lightning_dreambooth.errors import InputError

RUNS = Path("runs")


def default_name(configs: list[Path]) -> str:
    """The last config's name; that of its folder if it is the `config.yaml` of a run."""
    if not configs:
        return "dreambooth"
    return configs[-1].resolve().parent.name if configs[-1].name == "config.yaml" else configs[-1].stem


def run_folder(name: str | None, default: str, resumed: Path | None) -> Path:
    """Where a run writes: where the resumed state lies, in a folder of the given name, or of a free one.

    Raises:
        InputError: if the given name is taken by another run.
    """
    if resumed:
        run = resumed.resolve().parent.parent
        if run.is_relative_to(RUNS.resolve()) and name in (None, str(run.relative_to(RUNS.resolve()))):
            return RUNS / run.relative_to(RUNS.resolve())
    if name is None:
        free = (RUNS / (default if number == 1 else f"{default}-{number}") for number in itertools.count(1))
        return next(folder for folder in free if create_exclusively(folder))
    if not create_exclusively(RUNS / name):
        raise InputError(
            f"{RUNS / name} is taken by another run; choose another name, or add --ckpt_path last to go on from its "
            "newest state"
        )
    return RUNS / name


def create_exclusively(folder: Path) -> bool:
    """Whether a new run has got a folder: its first process makes it, which only one can; the others find it empty."""
    if not is_first():
        return not folder.exists() or not any(folder.iterdir())
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def is_first() -> bool:
    """Whether this is the first of a run's processes, as their launcher says before they have met."""
    node = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))
    return node == 0 and getattr(rank_zero_only, "rank", 0) == 0
