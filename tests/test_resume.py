"""Stopping and resuming equals never stopping, bit for bit, in everything that a run leaves behind."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import tiny
from helpers.comparison import assert_same, left_behind

SETTINGS = {
    "trainer__max_steps": 6, "trainer__accumulate_grad_batches": 2, "checkpoint__every_n_steps": 3,
    "samples__every_n_steps": 2, "model__ema_decay": 0.9, "model__lr_schedule": "cosine", "model__warmup_steps": 2,
    "data__flip": True, "data__crop": "random", "data__caption_dropout": 0.3, "model__snr_gamma": 5.0,
}  # fmt: skip
# Amid the accumulation of step 2, which is also due a grid; at the beginning of step 4, just saved; after its grid.
STOPS = (3, 6, 8)

ADAM, ADAM_8BIT = "torch.optim.AdamW", "bitsandbytes.optim.AdamW8bit"

Run = Callable[..., object]


def stopped(run: Run, at: int, **settings: object) -> None:
    """Ends a run by SIGTERM at a micro-batch."""
    with pytest.raises(SystemExit) as end:
        run("fit", "--trainer.callbacks+=helpers.probes.Stopper", f"--trainer.callbacks.at={at}", **settings)
    assert end.value.code == 143


CELLS = [*itertools.product((0, 2), ("32", "bf16-mixed"), (ADAM, ADAM_8BIT), (True, False))]
QUICK = [(0, "32", ADAM, True), (2, "bf16-mixed", ADAM_8BIT, False)]


@pytest.mark.parametrize(
    ("workers", "precision", "optimizer", "cached"),
    [pytest.param(*cell, marks=[] if cell in QUICK else [pytest.mark.slow]) for cell in CELLS],
)
def test_stopping_and_resuming_equals_never_stopping(
    run: Run, small_clip: Path, workers: int, precision: str, optimizer: str, cached: bool
) -> None:
    settings = SETTINGS | {
        "data__num_workers": workers, "trainer__precision": precision, "model__optimizer": optimizer,
        "model__optimizer__lr": 1e-3, "data__cache_latents": cached, "fidelity__clip_model": small_clip,
        "data__identifier": "sks", "fidelity__steps": 2, "fidelity__every_n_steps": 2,
        "fidelity__losses_every_n_steps": 3,
    }  # fmt: skip
    tiny.subject(Path("girl"), 5)
    run(**settings, name="whole")
    stopped(run, STOPS[0], **settings, name="parts")
    for at in STOPS[1:]:
        stopped(run, at, **settings, name="parts", ckpt_path="last")
    run(**settings, name="parts", ckpt_path="last")
    whole, parts = left_behind("whole"), left_behind("parts")
    assert len(whole["curves"]["train/loss"]) == 6
    assert len(whole["images"]) == 4 + 3 + 1
    assert_same(whole, parts)
