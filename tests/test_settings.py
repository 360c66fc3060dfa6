"""Settings of training that do not go together end in one line, before anything is loaded or written."""

import warnings
from collections.abc import Callable
from pathlib import Path

import bitsandbytes
import pytest
import pytorch_lightning as pl
from helpers.fake_cuda import fake_cuda, strategy

from lightning_dreambooth.errors import InputError, InputWarning
from lightning_dreambooth.module import DreamBooth

BF16 = {"model__weight_dtype": "bfloat16", "trainer__precision": "bf16-mixed"}
ROUNDING = "lightning_dreambooth.rounding.RoundingAdamW"
EARLY = {"model__update_in_backward": True, "trainer__gradient_clip_val": "null"}


@pytest.mark.parametrize(("settings", "line"), [
    (BF16, f"in which AdamW would lose small updates; give model.optimizer {ROUNDING}, or model.lora"),
    (BF16 | {"model__optimizer": "bitsandbytes.optim.AdamW8bit"}, "in which AdamW8bit would lose small updates"),
    (BF16 | {"model__optimizer": ROUNDING, "model__ema_decay": 0.9}, "model.ema_decay averages weights in float32"),
    (BF16 | {"model__optimizer": ROUNDING, "trainer__precision": 32}, "needs trainer.precision bf16-mixed; it is 32-"),
    (EARLY | {"trainer__gradient_clip_val": 0.5}, "update_in_backward needs trainer.gradient_clip_val null; it is 0.5"),
    (EARLY | {"trainer__accumulate_grad_batches": 2}, "needs trainer.accumulate_grad_batches 1; it is 2"),
    (EARLY | {"trainer__devices": 2}, "needs trainer.devices 1; it is 2"),
])  # fmt: skip
def test_they_end_in_one_line(complaint: Callable[..., str], settings: dict[str, object], line: str) -> None:
    settings = {"model__optimizer": "torch.optim.AdamW"} | settings
    assert line in complaint(**settings)
    assert not Path("runs").exists()


def test_an_optimizer_that_is_slow_on_a_cpu_is_warned_of_there_alone() -> None:
    module = DreamBooth(optimizer=lambda groups: bitsandbytes.optim.AdamW8bit(groups, lr=1e-5))
    settings = {"max_steps": 1, "logger": False, "enable_checkpointing": False}
    with pytest.warns(InputWarning, match="AdamW8bit takes many times as long"):
        module.check_training(pl.Trainer(**settings, accelerator="cpu"))
    with fake_cuda(), warnings.catch_warnings(record=True) as warned:
        module.check_training(pl.Trainer(**settings, strategy=strategy()))
    assert warned == []


def test_a_gradient_scaler_comes_too_late_for_updates_in_backward() -> None:
    with fake_cuda():
        settings = {"precision": "16-mixed", "gradient_clip_val": None, "max_steps": 1, "logger": False}
        trainer = pl.Trainer(**settings, strategy=strategy(), enable_checkpointing=False)
        DreamBooth().check_training(trainer)
        with pytest.raises(InputError, match=r"trainer\.precision 16-mixed; use bf16-mixed"):
            DreamBooth(update_in_backward=True).check_training(trainer)
