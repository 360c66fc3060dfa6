"""Adapters extracted from a fine-tuned model."""

from pathlib import Path

import pytest
import torch

from lightning_dreambooth.models.lora import Lora, adapted, add_adapters, fused
from lightning_dreambooth.models.lora_extraction import extract, nearest
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


def tuned(tiny_sd: Path, lora: Lora) -> StableDiffusion:
    """A model whose weights a LoRA has changed, without adapters of its own."""
    teacher = StableDiffusion.load(ModelFiles(str(tiny_sd)))
    add_adapters(teacher.unet, "unet", lora, 0)
    torch.manual_seed(0)
    for _, layer in adapted(teacher.unet):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    model = StableDiffusion.load(ModelFiles(str(tiny_sd)))
    model.unet.load_state_dict(fused(teacher.unet))
    return model


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_a_change_of_low_rank_is_kept_whole(model: StableDiffusion, tiny_sd: Path, targets: str) -> None:
    changed = tuned(tiny_sd, Lora(3, 3.0, targets))
    kept = extract(model.unet, changed.unet, 4, targets, "")
    assert kept.change > 1
    assert kept.relative_error < 1e-3
    for name, weight in fused(model.unet).items():
        torch.testing.assert_close(weight, changed.unet.state_dict()[name], atol=1e-4, rtol=0)


def test_the_error_is_what_the_adapters_leave_out(model: StableDiffusion, tiny_sd: Path) -> None:
    changed = tuned(tiny_sd, Lora(8, 8.0, "all"))
    changed.unet.conv_in.bias.data += 0.3  # no adapter can keep it
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    kept = extract(model.unet, changed.unet, 2, "attention", "")
    after, wanted = fused(model.unet), changed.unet.state_dict()
    change = sum((wanted[name] - before[name]).square().sum() for name in before).sqrt()
    lost = sum((wanted[name] - after[name]).square().sum() for name in before).sqrt()
    assert kept.change == pytest.approx(change.item(), rel=1e-4)
    assert kept.lost == pytest.approx(lost.item(), rel=1e-4)
    assert 0.1 < kept.relative_error < 1


def test_no_other_matrix_of_that_rank_is_nearer() -> None:
    torch.manual_seed(0)
    change = torch.randn(12, 9)
    down, up, rest = nearest(change, 3)
    assert rest == pytest.approx((change - up @ down).square().sum().item(), rel=1e-5)
    for _ in range(50):
        other = (up + 0.05 * torch.randn_like(up)) @ (down + 0.05 * torch.randn_like(down))
        assert (change - other).square().sum() > rest


def test_a_weight_smaller_than_the_rank_is_kept_whole() -> None:
    change = torch.randn(3, 2, 1, 1)
    down, up, rest = nearest(change, 5)
    assert down.shape == (5, 2)
    assert up.shape == (3, 5)
    assert rest == 0
    torch.testing.assert_close(up @ down, change.flatten(1))
