"""Names and folders of runs; each folder belongs to one run."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import rank_zero_only

from lightning_dreambooth.distributed import LOCK, acquire
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import remove_parts

RUNS = Path("runs")
CACHE = RUNS / ".cache"  # files that runs share


def default_name(configs: list[Path]) -> str:
    """The names of the configs, joined by hyphens; a `config.yaml` of a run has the name of its folder."""
    names = [config.resolve().parent.name if config.name == "config.yaml" else config.stem for config in configs]
    return "-".join(names) or "dreambooth"


def run_folder(name: str | None, default: str, resumed: Path | None) -> Path:
    """The folder of a run: that of the resumed state, that of the given name, or a free one of the default name.

    Raises:
        InputError: if another run has the given name.
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
            f"{RUNS / name} belongs to another run; choose another name, or add --ckpt_path last to resume from its "
            "newest state"
        )
    return RUNS / name


def create_exclusively(folder: Path) -> bool:
    """Creates the folder of a new run; returns whether it belongs to this run.

    The first process creates it unless it exists; the other processes accept one that is missing, or empty but for the
    first one's lock.
    """
    if not is_first_process():
        return not folder.exists() or not any(path.name != LOCK for path in folder.iterdir())
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Lets one `fit` at a time write to a run's folder, and first removes unfinished files of a killed one.

    The first process holds the lock for all; it must enter before anything in the folder is opened for writing.

    Raises:
        InputError: if another `fit` holds the lock.
    """
    if not is_first_process():
        yield
        return
    lock = FileLock(run / LOCK)
    if not acquire(lock, patience_seconds=0):
        raise InputError(f"{run} is in use by another run; choose another name")
    try:
        remove_parts(run)
        remove_parts(*(path for path in run.iterdir() if path.is_dir()))
        yield
    finally:
        lock.release()


def is_first_process() -> bool:
    """Whether this is the first process of a run, according to the launcher's environment variables."""
    node = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))
    return node == 0 and getattr(rank_zero_only, "rank", 0) == 0


def output_folder(trainer: Trainer) -> Path:
    """The folder of a run, `runs/<name>`."""
    return Path(trainer.default_root_dir)


def step_name(step: int) -> str:
    """Name of the files and folders of an optimizer step, such as `step-000400`."""
    return f"step-{step:06d}"
