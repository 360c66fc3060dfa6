"""Last lines of a fit: best step, cost, last loss, weight changes, and paths."""

from pathlib import Path

from lightning_dreambooth.callbacks.samples import SAMPLES
from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.evaluation.history import best_first, describe_choice, share_of_training
from lightning_dreambooth.saving.order import EXPORTS, newest_first
from lightning_dreambooth.saving.runs import RUNS, step_name


def fit_summary(job: Job, folder: Path, seconds: float) -> str:
    """One or two lines about a fit that has ended after `seconds`."""
    steps, loss = job.trainer.global_step, job.trainer.callback_metrics.get("train/loss")
    if loss is None:
        return (
            f"{folder.name}: nothing was trained: the state has {steps} steps; raise trainer.max_steps or "
            "fidelity.patience"
        )
    fidelity = job.callbacks.fidelity
    lines = []
    if choice := describe_choice(fidelity.history):
        rows = job.data.samples_seen(steps) * job.data.rows_per_sample
        lines.append(f"{folder.name}: {choice}; measuring took {share_of_training(fidelity.evaluations, rows)}")
    minutes, rest = divmod(round(seconds), 60)
    moved = ", ".join(f"{part} moved {float(change):.2%}" for part, change in job.module.relative_changes().items())
    lines.append(
        f"{folder.name}: {steps} steps in {minutes} min {rest} s, last loss {float(loss):.4f}, {moved}; "
        f"images in {folder / SAMPLES}, log: tensorboard --logdir {RUNS}, pipeline in {_pipeline(job, folder)}"
    )
    return "\n".join(lines)


def _pipeline(job: Job, folder: Path) -> Path:
    """The export of the best step that was exported, else the newest one."""
    best = [folder / EXPORTS / step_name(row["step"]) for row in best_first(job.callbacks.fidelity.history)]
    return next((export for export in best if export.is_dir()), newest_first(folder / EXPORTS)[0].path)
