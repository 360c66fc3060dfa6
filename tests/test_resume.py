"""Stopping and resuming equals never stopping, bit for bit, in everything that a run leaves behind."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import forked, tiny
from helpers.comparison import assert_same, left_behind
from helpers.forked import WORDS
from helpers.probes import scalars
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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


CELLS = [  # each value of each meets each value of each other
    (0, "32", ADAM, True),
    *(pytest.param(*cell, marks=pytest.mark.slow) for cell in [
        (0, "bf16-mixed", ADAM_8BIT, False), (2, "32", ADAM_8BIT, False), (2, "bf16-mixed", ADAM, False),
        (2, "bf16-mixed", ADAM_8BIT, True)]),
]  # fmt: skip


@pytest.mark.parametrize(("workers", "precision", "optimizer", "cached"), CELLS)
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


LORA = {"model__lora__rank": 4, "model__optimizer": ADAM, "model__optimizer__lr": 1e-2}
DORA = LORA | {
    "model__lora__dora": True, "model__lora__targets": "all", "model__weight_dtype": "bfloat16",
    "trainer__precision": "bf16-mixed", "model__optimizer": ADAM_8BIT, "model__gradient_checkpointing": True,
}  # fmt: skip


@pytest.mark.parametrize("adapters", [LORA, pytest.param(DORA, marks=pytest.mark.slow)], ids=["lora", "dora"])
def test_adapters_are_resumed_as_if_they_had_never_been_stopped(run: Run, adapters: dict[str, object]) -> None:
    settings = SETTINGS | adapters | {"fidelity__losses_every_n_steps": 3}
    run(**settings, name="whole")
    stopped(run, STOPS[0], **settings, name="parts")
    stopped(run, STOPS[2], **settings, name="parts", ckpt_path="last")
    run(**settings, name="parts", ckpt_path="last")
    whole = left_behind("whole")
    assert all(".lora_" in name or name.startswith("ema.") for name in whole["state_dict"])
    assert_same(whole, left_behind("parts"))


def test_weights_in_bf16_are_resumed_as_if_they_had_never_been_stopped(run: Run) -> None:
    rounding = {
        "model__weight_dtype": "bfloat16", "model__optimizer": "lightning_dreambooth.rounding.RoundingAdamW",
        "model__optimizer__lr": 1e-3, "model__update_in_backward": True, "model__ema_decay": "null",
        "trainer__precision": "bf16-mixed", "trainer__gradient_clip_val": "null", "trainer__accumulate_grad_batches": 1,
    }  # fmt: skip
    settings = SETTINGS | rounding | {"fidelity__losses_every_n_steps": 3}
    run(**settings, name="whole")
    stopped(run, 2, **settings, name="parts")
    run(**settings, name="parts", ckpt_path="last")
    whole = left_behind("whole")
    assert {value.dtype for value in whole["state_dict"].values()} == {torch.float32, torch.bfloat16}
    assert_same(whole, left_behind("parts"))


@pytest.mark.slow
def test_dropout_is_the_same_after_resuming_and_off_while_drawing(run: Run, tiny_sd: Path) -> None:
    shutil.copytree(tiny_sd, "dropping")
    for file, name in {"unet/config.json": "dropout", "text_encoder/config.json": "attention_dropout"}.items():
        path = Path("dropping", file)
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: 0.3}))
    settings = {"trainer__max_steps": 6, "samples__every_n_steps": 2, "checkpoint__every_n_steps": 3}
    settings |= {"fidelity__losses_every_n_steps": 2}
    run(**settings, name="plain")
    settings["model__pretrained"] = "dropping"
    run(**settings, name="whole")
    stopped(run, 1, **settings, name="parts")
    stopped(run, 3, **settings, name="parts", ckpt_path="last")
    run(**settings, name="parts", ckpt_path="last")
    assert_same(left_behind("whole"), left_behind("parts"))
    dropped, plain = left_behind("whole"), left_behind("plain")
    assert dropped["images"]["samples/step-000000.png"] == plain["images"]["samples/step-000000.png"]
    assert dropped["curves"]["val/loss/instance"][0] == plain["curves"]["val/loss/instance"][0]
    assert dropped["curves"]["train/loss"][0] != plain["curves"]["train/loss"][0]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
def test_what_a_stop_has_left_out_is_logged_once_however_often_the_resumed_run_is_killed(
    tmp_path: Path, kills: int
) -> None:
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    words = ["fit", *WORDS, "--fidelity.losses_every_n_steps=2", "--name=run", "--ckpt_path=last"]
    words += ["--checkpoint.every_n_steps=100"]

    def ended_by(probe: str, at: int) -> int:
        flags = [f"--trainer.callbacks+=helpers.probes.{probe}", f"--trainer.callbacks.at={at}"]
        return forked.start(tmp_path, [*words, *flags]).wait()

    assert ended_by("Stopper", 1) == 128 + signal.SIGTERM
    for _ in range(kills):
        assert ended_by("Killer", 3) == -signal.SIGKILL
    assert forked.start(tmp_path, words).wait() == 0
    curves = scalars(tmp_path / "runs/run")
    assert [step for step, _ in curves["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in curves["val/loss/instance"]] == [0, 2, 4, 6]
    grids = EventAccumulator(str(tmp_path / "runs/run")).Reload().Images("samples")
    assert [event.step for event in grids] == [0, 2, 4, 6]


@pytest.mark.slow
def test_max_time_limits_each_job_and_not_all_of_them_together(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {
        "name": "run", "ckpt_path": "last", "trainer__max_time": "00:00:00:01", "trainer__max_steps": 100_000,
        "samples__every_n_steps": 100_000, "model__prior_weight": 0, "fidelity__losses_every_n_steps": "null",
    }  # fmt: skip
    reached = [run(**settings).trainer.global_step for _ in range(2)]
    assert 0 < reached[0] < reached[1]
    printed = capsys.readouterr().out
    for steps in reached:
        assert f"trainer.max_time is over after step {steps} of 100000; resume with --name run" in printed
    assert "raise trainer.max_steps" not in printed
    run(**settings | {"trainer__max_time": "00:00:00:00"})
    assert "raise trainer.max_time" in capsys.readouterr().out
    run(**settings | {"trainer__max_steps": reached[1]})
    assert "raise trainer.max_steps" in capsys.readouterr().out
