from collections.abc import Callable

import pytest
import torch

from lightning_dreambooth.analysis import block_changes, curves
from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.saving.runs import RUNS

Run = Callable[..., DreamBoothCLI]


def test_curves_hold_every_logged_step(run: Run) -> None:
    run(name="first")
    by_tag = curves(RUNS / "first")
    assert list(by_tag["train/loss"]) == [1, 2, 3, 4]
    assert {"train/instance_loss", "train/prior_loss", "watch/weight_change/unet"} <= set(by_tag)


def test_block_changes_are_those_of_the_weights(run: Run) -> None:
    finished = run(name="first", model__train_text_encoder=False, checkpoint__dtype="float32")
    export = str(finished.folder / "exports/step-000004")
    base = finished.model.files.pretrained
    changes = block_changes(base, export)
    assert all(value == 0 for name, value in changes.items() if name.startswith("text_encoder."))
    assert "unet.mid_block.attentions" in changes
    assert changes["unet.down_blocks.0.resnets"] > 0
    start = type(finished.model.model).load(finished.model.files).unet
    now, before = (torch.cat([p.flatten() for p in unet.conv_in.parameters()]) for unet in
                   (finished.model.model.unet, start))  # fmt: skip
    assert changes["unet.conv_in"] == pytest.approx(((now - before).norm() / before.norm()).item(), rel=1e-4)
    assert block_changes(base, base) == dict.fromkeys(changes, 0.0)
