"""Conditions under which callbacks act: completed optimizer steps, intervals, early ends."""

import pytorch_lightning as pl


def completes_step(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether this micro-batch completed an optimizer step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def due(trainer: pl.Trainer, every_n_steps: int) -> bool:
    """Whether the current optimizer step is a multiple of `every_n_steps` or the last one."""
    return trainer.global_step % every_n_steps == 0 or trainer.global_step == trainer.max_steps


def ends_early(trainer: pl.Trainer) -> bool:
    """Whether the run is being stopped before its last step; only its state must then be saved."""
    return trainer.should_stop and trainer.global_step != trainer.max_steps
