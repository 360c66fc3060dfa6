"""Last lines of a fit: best step, cost, last loss, weight changes, and paths."""

from pathlib import Path

from pytorch_lightning.callbacks import Callback, Timer

from lightning_dreambooth.callbacks.samples import SAMPLES
from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.evaluation.history import describe_choice, share_of_training
from lightning_dreambooth.saving.export import best_export, lora_name
from lightning_dreambooth.saving.runs import RUNS

MAX_TIME = "trainer.max_time"


def fit_summary(job: Job, folder: Path, seconds: float) -> str:
    """A few lines about a fit that has ended after `seconds`."""
    steps, loss = job.trainer.global_step, job.trainer.callback_metrics.get("train/loss")
    fidelity = job.callbacks.fidelity
    if loss is None:
        return f"{folder.name}: nothing was trained: the state has {steps} steps; raise {_limit(job)}"
    lines = []
    if _limit(job) == MAX_TIME:
        resume = f"resume with --name {folder.relative_to(RUNS)} --ckpt_path last"
        lines.append(f"{folder.name}: {MAX_TIME} is over after step {steps} of {job.trainer.max_steps}; {resume}")
    if choice := describe_choice(fidelity.history):
        rows = job.data.samples_seen(steps) * job.data.rows_per_sample
        lines.append(f"{folder.name}: {choice}; measuring took {share_of_training(fidelity.evaluations, rows)}")
    minutes, rest = divmod(round(seconds), 60)
    moved = ", ".join(f"{part} moved {float(change):.2%}" for part, change in job.module.relative_changes().items())
    lines.append(
        f"{folder.name}: {steps} steps in {minutes} min {rest} s, last loss {float(loss):.4f}, {moved}; "
        f"images in {folder / SAMPLES}, log: tensorboard --logdir {RUNS}, {_exported(job, folder)}"
    )
    return "\n".join(lines)


def _limit(job: Job) -> str:
    """The key that has ended training, if no signal has."""
    if job.trainer.global_step >= job.trainer.max_steps:
        return "trainer.max_steps"
    callbacks: list[Callback] = job.trainer.callbacks  # type: ignore[attr-defined]
    left = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
    return MAX_TIME if any(seconds is not None and seconds <= 0 for seconds in left) else "fidelity.patience"


def _exported(job: Job, folder: Path) -> str:
    """Where the export of the best step that was exported lies, else that of the newest one."""
    chosen = best_export(folder, job.callbacks.fidelity.history)
    return f"pipeline in {chosen}" if job.module.lora is None else f"LoRA in {chosen / lora_name(chosen)}"
