"""Checks and corrections of a state that is resumed: trained weights, kind of optimizer, progress."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from lightning_dreambooth import trial
from lightning_dreambooth.distributed import rank
from lightning_dreambooth.errors import InputError

REMEDY = "resume with the model settings it was saved with"


def optimizer_kind(optimizer: Optimizer) -> str:
    """The optimizer's class, such as `torch.optim.adamw.AdamW`."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def check_kind(optimizer: Optimizer, saved_with: str | None) -> None:
    """Raises InputError if the resumed state was saved with another kind of optimizer; None if it does not say."""
    if saved_with not in (None, optimizer_kind(optimizer)):
        raise InputError(
            f"the state was saved with {saved_with}, which model.optimizer must name to resume; "
            f"it is {optimizer_kind(optimizer)}"
        )


class SavedOptimizer(NamedTuple):
    """The optimizer of a resumed state, without its tensors.

    Attributes:
        kind: Its class; None in states that do not record it.
        groups: Its groups with their arguments, as they will be loaded.
        entries: Names of what it keeps of each parameter.
    """

    kind: str | None
    groups: list[dict[str, Any]]
    entries: set[str]


def saved_optimizer(checkpoint: Mapping[str, Any]) -> SavedOptimizer:
    """The optimizer of a state."""
    state: dict[str, Any] = next(iter(checkpoint["optimizer_states"]), {"param_groups": [], "state": {}})
    return SavedOptimizer(checkpoint.get("optimizer"), state["param_groups"], _entries(state["state"]))


def take_configured(saved: SavedOptimizer, optimizer: Optimizer, build: Callable[[Iterable[Any]], Optimizer]) -> None:
    """Replaces the arguments of the optimizer in its saved state by the configured ones, and prints what has changed.

    Groups also hold what some optimizers count, such as Prodigy's distance; that is no argument and stays.

    Raises:
        InputError: if it is of another kind, or the configured arguments need what the state does not hold.
    """
    check_kind(optimizer, saved.kind)
    changed = []
    for before, now in zip(saved.groups, optimizer.param_groups, strict=False):
        for key in inspect.signature(type(optimizer)).parameters:
            old = before.get("initial_lr" if key == "lr" else key)
            if key != "params" and key in now and old != now[key]:
                changed.append(f"{now.get('name', 'group')} {key} {old} => {now[key]}")
                before[key] = now[key]
    if not changed:
        return
    if saved.entries and (missing := _needed(build) - saved.entries):
        raise InputError(
            f"the state holds no {', '.join(sorted(missing))}, which the configured optimizer needs; resume with the "
            "arguments of model.optimizer that it was saved with"
        )
    if rank() == 0:
        print(f"the configured optimizer differs from the state's: {', '.join(changed)}", file=sys.stderr)


def _entries(state: Mapping[Any, Mapping[str, Any]]) -> set[str]:
    return {name for entries in state.values() for name in entries}


def _needed(build: Callable[[Iterable[Any]], Optimizer]) -> set[str]:
    """What an optimizer keeps of each parameter; nothing if it cannot step on the device of this trial."""
    with suppress(InputError):
        trial.step(tried := trial.build(build))
        return _entries(tried.state)
    return set()


def check_weights(saved: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> None:
    """Raises InputError if a state does not hold exactly the weights that a run trains."""
    same = saved.keys() & trained.keys()
    if saved.keys() != trained.keys():
        raise InputError(
            f"the state holds {len(saved)} trained weights, this run trains {len(trained)}, of which "
            f"{len(same)} are the same; {REMEDY}"
        )
    if other := [name for name in saved if saved[name].shape != trained[name].shape]:
        shapes = [list(weights[other[0]].shape) for weights in (saved, trained)]
        raise InputError(f"the state holds {other[0]} in the shape {shapes[0]}, this run trains {shapes[1]}; {REMEDY}")


def check_adapters(saved: Any, configured: Any) -> None:
    """Raises InputError if the adapters of a state had other settings, some of which their weights do not show.

    Both are settings, the name of a LoRA file, which may have moved, or None.
    """
    if saved != configured and not (isinstance(saved, str) and isinstance(configured, str)):
        raise InputError(f"the state was trained with model.lora {saved}, this run has {configured}; {REMEDY}")


def remove_names_of_code(checkpoint: dict[str, Any]) -> None:
    """Removes the entries by which Lightning would run code that a state names."""
    for hyper_parameters in ("hyper_parameters", "datamodule_hyper_parameters"):
        checkpoint.get(hyper_parameters, {}).pop("_instantiator", None)


def start_clock(checkpoint: dict[str, Any]) -> None:
    """Removes the time that earlier jobs took: `trainer.max_time` limits each job, which has a limit of its own."""
    checkpoint.get("callbacks", {}).pop("Timer", None)


def end_after_last_step(checkpoint: dict[str, Any], accumulate_grad_batches: int) -> None:
    """Sets the progress of a state to the end of its last optimizer step, wherever in that step it was saved.

    A finished run then resumes when max_steps is raised, and one that ended during accumulation repeats its last step.
    """
    done = checkpoint["global_step"] * accumulate_grad_batches
    fit_loop = checkpoint["loops"]["fit_loop"]
    batches, epoch = fit_loop["epoch_loop.batch_progress"], fit_loop["epoch_progress"]["current"]
    for count in (batches["total"], batches["current"]):
        count |= {"ready": done, "started": done, "processed": done, "completed": done - 1}
    batches["is_last_batch"] = False
    epoch |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
