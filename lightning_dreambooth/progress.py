"""Lightning's count of batches in a saved state."""

from typing import Any


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
