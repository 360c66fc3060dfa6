"""Switches of a config that lower the peak of a `fit`, flipped one after the other until it fits."""

from contextlib import suppress
from typing import NamedTuple

from lightning_dreambooth import trial
from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.cli.main import build_job
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.planning.phases import Prediction, predict

ONE_BY_ONE = ["--data.class_batch_size=1", "--samples.batch_size=1", "--fidelity.batch_size=1"]
IN_BACKWARD = ["--model.update_in_backward=true", "--trainer.gradient_clip_val=null"]
CHECKPOINTING = ["--model.gradient_checkpointing=true"]
ADAPTERS = ["--model.lora.rank=8", "--model.optimizer=torch.optim.AdamW", "--model.optimizer.lr=1e-4"]


class Flipped(NamedTuple):
    """A switch, and what is predicted with it and those before it.

    Attributes:
        switch: The switch, as arguments of `fit`.
        prediction: The prediction.
    """

    switch: list[str]
    prediction: Prediction


def switches(job: Job) -> list[list[str]]:
    """Switches that a job has not flipped yet, as arguments of `fit`, those that cost the least time first.

    Updates in backward cost none, but leave no gradients to clip; optimizer states in eight bits cost hardly any,
    images drawn one by one a little, a smaller batch that is accumulated more often some more, gradient checkpointing
    a second forward pass. Adapters change what is trained, so they are last.
    """
    found = []
    if job.module.lora is None and not job.module.update_in_backward:
        found.append(IN_BACKWARD)
    trained = trial.build(job.module.optimizer)
    if job.module.lora is None and not type(trained).__module__.startswith("bitsandbytes"):
        rate = trained.param_groups[0]["lr"]
        found.append(["--model.optimizer=bitsandbytes.optim.AdamW8bit", f"--model.optimizer.lr={rate:g}"])
    found.append(ONE_BY_ONE)
    batch_size, accumulated = job.data.batch_size, job.trainer.accumulate_grad_batches
    while batch_size % 2 == 0:
        batch_size, accumulated = batch_size // 2, accumulated * 2
        found.append([f"--data.batch_size={batch_size}", f"--trainer.accumulate_grad_batches={accumulated}"])
    if not job.module.training_options.checkpointing:
        found.append(CHECKPOINTING)
    if job.module.lora is None:
        found.append(ADAPTERS)
    return found


def flip(argv: list[str], job: Job, peak: int, free: int) -> list[Flipped]:
    """Flips the switches of a job that lower its peak, until it is no more than the free bytes.

    Args:
        argv: The arguments of `fit` that the job was built from.
        job: The job.
        peak: Bytes at its peak.
        free: Free bytes.

    Returns:
        The switches that lower it, in order.
    """
    kept: list[Flipped] = []
    for switch in switches(job):
        if peak <= free:
            break
        flipped = [word for each in kept for word in each.switch]
        with suppress(InputError):  # not every config allows every switch
            prediction = predict(build_job([*argv, *flipped, *switch]))
            if prediction.fullest.peak < peak:
                kept.append(Flipped(switch, prediction))
                peak = prediction.fullest.peak
    return kept
