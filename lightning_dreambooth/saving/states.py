"""States of a run: their paths, the choice of one to resume, and checks of it; checkpoint_io.py writes them."""

import re
import sys
from pathlib import Path
from typing import Any

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.files import is_whole
from lightning_dreambooth.saving.checkpoint_io import AtomicCheckpointIO
from lightning_dreambooth.saving.order import STATES, newest_first
from lightning_dreambooth.saving.runs import RUNS, step_name

HOOKS = ("_instantiator", "_class_path")  # through these Lightning runs code that a state names (CVE-2026-58659)
PARTS = {
    "global_step": int, "state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict,
    "DreamBoothData": dict,
}  # fmt: skip


def state_path(run: Path, step: int) -> Path:
    """Path of a run's state of an optimizer step."""
    return run / STATES / f"{step_name(step)}.ckpt"


def find_state(ckpt_path: str | None, name: str | None, default: str) -> Path | None:
    """The value of `--ckpt_path` => the path of a state; None without one, or if `last` finds no state.

    `last` is the newest undamaged state of the run of the given name; without one, of the run of the default name with
    the highest number, `-2` and so on.

    Raises:
        InputError: if there is no such file, or all are damaged.
    """
    if ckpt_path is None:
        return None
    if ckpt_path != "last":
        if not Path(ckpt_path).is_file():
            raise InputError(f"ckpt_path {ckpt_path} is not a local file; give a state that `fit` wrote, or 'last'")
        if not is_whole(Path(ckpt_path)):
            raise InputError(f"{ckpt_path} is damaged or not a state; give another one that `fit` has written")
        return Path(ckpt_path)
    runs = [RUNS / name] if name else _numbered(default)
    states = [saved.path for run in runs for saved in newest_first(run / STATES)]
    for state in states:
        if is_whole(state):
            return state
        print(f"skipped {state}: it is damaged", file=sys.stderr)
    if states:
        raise InputError(f"no state of {RUNS / (name or default)} is undamaged; begin again under another name")
    return None


def _numbered(default: str) -> list[Path]:
    """The runs of a default name, the last one first."""
    matches = {run: re.fullmatch(rf"{re.escape(default)}(?:-(\d+))?", run.name) for run in RUNS.glob("*")}
    numbers = {run: int(match[1] or 1) for run, match in matches.items() if match}
    return sorted(numbers, key=lambda run: numbers[run], reverse=True)


def read_state(path: Path) -> dict[str, Any]:
    """Reads a state; its tensors are mapped from the file, not copied to memory.

    Raises:
        InputError: if it is not a state, holds more than tensors and plain values, or names code to run.
    """
    state = AtomicCheckpointIO().load_checkpoint(path)
    for name, kind in PARTS.items():
        if not isinstance(state.get(name), kind):
            raise InputError(f"{path} has no {name}; give a state that `fit` has written")
    for name in ("step", "samples"):
        if not isinstance(state["DreamBoothData"].get(name), int):
            raise InputError(f"{path} does not record the samples seen; give a state that `fit` has written")
    for key, value in state.items():
        for hook in HOOKS:
            if isinstance(value, dict) and hook in value:
                raise InputError(f"{path} names code to run in its {key} ({hook}: {value[hook]}); it is not loaded")
    return state


def check_base(path: Path, trained_from: str, base_model: str) -> None:
    """Raises InputError if a state was trained from other weights than those of the given fingerprint."""
    if trained_from != base_model:
        raise InputError(
            f"{path} was trained from the base model {trained_from}, this run starts from {base_model}; "
            "resume with the model settings it was saved with"
        )
