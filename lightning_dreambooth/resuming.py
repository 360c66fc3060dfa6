"""What a state must hold to be resumed: the same weights, the same kind of optimizer, progress at the end of a step."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

from lightning_dreambooth.errors import InputError


def kind_of(optimizer: Optimizer) -> str:
    """The optimizer's class, such as `torch.optim.adamw.AdamW`."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def check_kind(optimizer: Optimizer, saved_with: str | None) -> None:
    """Raises InputError if a state to resume was saved with another kind of optimizer; None is no state."""
    if saved_with not in (None, kind_of(optimizer)):
        raise InputError(
            f"the state was saved with {saved_with}, which model.optimizer must name to resume; "
            f"it is {kind_of(optimizer)}"
        )


def check_weights(saved: Mapping[str, Any], trained: set[str]) -> None:
    """Raises InputError if a state holds other weights than a run trains."""
    if set(saved) != trained:
        raise InputError(
            f"the state holds {len(saved)} trained weights, this run trains {len(trained)}, of which "
            f"{len(set(saved) & trained)} are the same; resume with the model settings it was saved with"
        )


def remove_names_of_code(checkpoint: dict[str, Any]) -> None:
    """Removes what would let Lightning run code that a state names."""
    for hyper_parameters in ("hyper_parameters", "datamodule_hyper_parameters"):
        checkpoint.get(hyper_parameters, {}).pop("_instantiator", None)


def end_after_last_step(checkpoint: dict[str, Any], accumulate_grad_batches: int) -> None:
    """Sets the progress of a state to the end of its last optimizer step, wherever in the run it was saved.

    A finished run then resumes when max_steps is raised, and one that ended during accumulation repeats its last step.
    """
    done = checkpoint["global_step"] * accumulate_grad_batches
    fit_loop = checkpoint["loops"]["fit_loop"]
    batches, epoch = fit_loop["epoch_loop.batch_progress"], fit_loop["epoch_progress"]["current"]
    for count in (batches["total"], batches["current"]):
        count |= {"ready": done, "started": done, "processed": done, "completed": done - 1}
    batches["is_last_batch"] = False
    epoch |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
