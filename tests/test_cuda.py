"""Training on CUDA, as far as it can be seen without a GPU: devices, waits of the host, and memory."""

from collections import Counter
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import pytorch_lightning as pl
import torch
from helpers import tiny
from helpers.fake_cuda import Device, as_fake, fake_cuda, strategy, walk
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import nn

from lightning_dreambooth.callbacks.monitor import TrainingMonitor
from lightning_dreambooth.cli.main import TRAINER_DEFAULTS
from lightning_dreambooth.datamodule import DreamBoothData
from lightning_dreambooth.diffusion.requests import Request, Sampler, SamplingSettings
from lightning_dreambooth.diffusion.sampling import SAMPLERS, as_bytes, sample
from lightning_dreambooth.evaluation.fixed_noise_loss import FixedSample, fixed_noise_losses
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.module import DreamBooth
from lightning_dreambooth.optimization import weight_sample
from lightning_dreambooth.rounding import RoundingAdamW

EVERYTHING = {
    "train_text_encoder": True, "snr_gamma": 5.0, "noise_offset": 0.1, "gradient_checkpointing": True, "ema_decay": 0.9,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "pixels": EVERYTHING | {"cache_latents": False, "accumulate_grad_batches": 2},
    "fused": EVERYTHING | {"optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-5, fused=True)},
    "teacher": EVERYTHING | {"prior": "teacher"},
    "rounding": {
        "optimizer": lambda groups: RoundingAdamW(groups, lr=1e-5),
        "weight_dtype": "bfloat16",
        "update_in_backward": True,
        "gradient_checkpointing": True,
        "gradient_clip_val": None,
    },
    "8-bit": {"optimizer": lambda groups: bitsandbytes.optim.AdamW8bit(groups, lr=1e-5), "ema_decay": 0.9},
}
CELLS = [
    ("bf16-mixed", "default"),
    *(pytest.param(*cell, marks=pytest.mark.slow) for cell in [
        ("bf16-mixed", "8-bit"), ("32", "fused"), ("16-mixed", "pixels"), ("16-mixed", "fused"),
        ("bf16-mixed", "pixels"), ("bf16-mixed", "teacher"), ("16-mixed", "teacher"), ("bf16-mixed", "rounding")]),
]  # fmt: skip


class Steps(pl.Callback):
    """The waits of each micro-batch, from its beginning to that of the next one."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.waits: list[Counter[str]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.waits.append(Counter(self.device.waits))
        self.device.waits.clear()

    on_train_end = on_train_batch_start


def waits_of(here: Path, model: Path, precision: str, kind: dict[str, Any]) -> Counter[str]:
    """The waits of the second optimizer step, which is not logged."""
    kind = dict(kind)
    trainer_settings = {"accumulate_grad_batches": kind.pop("accumulate_grad_batches", 1)}
    trainer_settings |= {"gradient_clip_val": kind.pop("gradient_clip_val", 1.0)}
    cache_latents = kind.pop("cache_latents", True)
    if precision == "16-mixed" and "optimizer" in kind:
        trainer_settings["gradient_clip_val"] = None  # a fused optimizer cannot clip scaled gradients
    tiny.images(here / "class", 2)
    with fake_cuda() as device:
        module = DreamBooth(str(model), **kind)
        data = DreamBoothData(
            "a photo of sks girl", "girl", "a photo of a girl", None if "prior" in kind else "class",
            num_class_images=2, cache_latents=cache_latents, training_setup=module.training_setup,
        )  # fmt: skip
        steps = Steps(device)
        settings = TRAINER_DEFAULTS | trainer_settings | {"log_every_n_steps": 100, "max_steps": 2}
        trainer = pl.Trainer(
            **settings, precision=precision, logger=False, default_root_dir=here,
            callbacks=[TrainingMonitor(), TQDMProgressBar(), steps], strategy=strategy(),
        )  # fmt: skip
        trainer.fit(module, data)
    return sum(steps.waits[1 + trainer.accumulate_grad_batches :], Counter())  # without those before and in step 1


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")  # there is no GPU to pin for
@pytest.mark.parametrize(("precision", "kind"), CELLS)
def test_between_log_steps_no_device_is_mixed_and_the_host_never_waits(
    here: Path, tiny_sd: Path, precision: str, kind: str
) -> None:
    waits = waits_of(here, tiny_sd, precision, KINDS[kind])
    scaler = Counter({place: count for place, count in waits.items() if "grad_scaler.py" in place})
    assert waits - scaler == Counter()
    # torch's gradient scaler reads whether to skip a step, unless the optimizer decides that itself.
    assert sum(scaler.values()) == (precision == "16-mixed" and kind != "fused")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_drawing_waits_once_per_batch_and_not_once_per_sampling_step(model: StableDiffusion, sampler: Sampler) -> None:
    waits = []
    for steps in (2, 5):
        with fake_cuda() as device:
            fake = as_fake(model, device).to("cuda")
            requests = [Request(prompt, 0, SamplingSettings("ugly", steps, 5.0, sampler)) for prompt in ("a", "a", "b")]
            images = sample(fake, requests, 32)
            assert images.device.type == "cuda"
            waits.append(Counter(device.waits))
            as_bytes(images).cpu()
            assert sum(device.waits.values()) == 2  # whether they are finite, and what they are
    assert waits == [Counter(), Counter()]


def test_fixed_noise_losses_wait_once_for_all_images(model: StableDiffusion) -> None:
    with fake_cuda() as device:
        fake = as_fake(model, device).to("cuda")
        fixed = [FixedSample(torch.zeros(4, 8, 8, device="cuda"), prompt) for prompt in ("a", "b", "c")]
        fixed_noise_losses(fake, {"instance": fixed, "class": fixed}, seed=0)
        assert sum(device.waits.values()) == 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_sampling_weights_takes_no_memory_in_any_layout(channels_last: bool) -> None:
    part = nn.Sequential(nn.Conv2d(64, 512, 3), nn.Conv2d(512, 512, 3))
    if channels_last:
        part.to(memory_format=torch.channels_last)
    with fake_cuda() as device:
        fake = as_fake(part, device).to("cuda")
        device.peak = before = device.resident
        weight_sample(dict(fake.named_parameters()))
        assert device.peak - before < 2**20  # the weights themselves are 10 MiB


def test_gradients_of_the_walk_are_those_of_backward() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(288, 5))
    images = torch.randn(2, 3, 8, 8)
    net(images).square().mean().backward()
    expected = [weight.grad.clone() for weight in net.parameters()]
    net.zero_grad()
    walk(net(images).square().mean())
    assert all(torch.equal(weight.grad, grad) for weight, grad in zip(net.parameters(), expected, strict=True))


def test_a_device_that_is_mixed_with_another_is_found_and_so_is_a_wait() -> None:
    with fake_cuda() as device:
        with pytest.raises(RuntimeError, match="device"):
            torch.ones(3, device="cuda") + torch.ones(3)
        float(torch.ones(3, device="cuda").sum())
        torch.ones(3, device="cuda").cpu()
        torch.ones(3, device="cuda").unique(dim=0)
        assert sum(device.waits.values()) == 3
