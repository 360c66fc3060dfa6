"""GPU memory that the configs for SD 1.5 need at its real size, predicted with fake tensors."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import pytorch_lightning as pl
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from helpers import tiny
from helpers.fake_cuda import Device, fake_cuda, strategy
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from transformers import CLIPTextConfig, CLIPTextModel

from lightning_dreambooth.callbacks.monitor import TrainingMonitor
from lightning_dreambooth.cli.main import build_job
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.models.tokens import load_tokenizer

ROOT = Path(__file__).parent.parent
GB = 1e9
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


@pytest.fixture
def sd15(tmp_path: Path) -> Path:
    """A folder with SD 1.5's resolution and number of tokens; its weights are small and never read."""
    folder = tiny.stable_diffusion(tmp_path / "sd15", factor=8)
    for file, change in {
        "unet/config.json": {"sample_size": 64},
        "tokenizer/tokenizer_config.json": {"model_max_length": 77},
        "text_encoder/config.json": {"max_position_embeddings": 77},
    }.items():
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | change))
    return folder


def load_sd15(files: ModelFiles) -> StableDiffusion:
    """SD 1.5 without numbers, wherever a model is loaded."""
    with _disable_current_modes():
        tokenizer = load_tokenizer(files.folder)
        scheduler = DDPMScheduler.from_pretrained(files.folder, subfolder="scheduler")
    parts = {
        "unet": UNet2DConditionModel(cross_attention_dim=768), "vae": AutoencoderKL(**VAE, scaling_factor=0.18215),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
    }  # fmt: skip
    model = StableDiffusion(**parts, tokenizer=tokenizer, scheduler=scheduler, folder=files.folder)
    return model.eval().requires_grad_(False)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, **_: Any,
) -> Tensor:  # fmt: skip
    """The kernels that torch takes on a GPU; on a machine without one it would take one that needs more memory."""
    if query.dtype is torch.float32 or attn_mask is not None:
        arguments = (query, key, value, attn_mask, True, dropout_p, is_causal)
        return torch.ops.aten._scaled_dot_product_efficient_attention(*arguments, scale=scale)[0]
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]


class Peaks(Callback):
    """Gigabytes at the peak of preparation, of training, and of a batch of samples."""

    def __init__(self, device: Device, draw: Callable[[Any], object]) -> None:
        self.device, self.draw = device, draw
        self.gb: dict[str, float] = {}

    def on_fit_start(self, *_: Any) -> None:
        self._note("preparation")

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._note("training")
        with trainer.precision_plugin.forward_context():
            self.draw(pl_module)
        self._note("drawing")

    def _note(self, phase: str) -> None:
        self.gb[phase] = self.device.peak / GB
        self.device.peak = self.device.resident


def predict(sd15: Path, precision: str, argv: list[str]) -> dict[str, float]:
    """The peaks of `fit` with the given arguments."""
    small = {
        "model.pretrained": sd15, "data.instance_data_dir": "girl", "data.class_data_dir": "class",
        "data.num_class_images": 3, "trainer.accelerator": "cpu",
        "trainer.precision": "32" if precision == "16-mixed" else precision,  # which is refused on a CPU
        "fidelity.clip_model": "null", "fidelity.clip_pretrained": "null", "fidelity.dino": "null",
        "fidelity.prompts": "null", "fidelity.unrelated_prompts": "null", "samples.steps": 2,
    }  # fmt: skip
    with fake_cuda() as device:
        job = build_job([*argv, *(f"--{key}={value}" for key, value in small.items())])
        samples = job.callbacks.samples
        requests = samples.requests(job.data.concepts)[: samples.batch_size]
        peaks = Peaks(device, lambda module: module.draw(requests, job.data.resolution_px))
        settings = {key: getattr(job.trainer, key) for key in ("gradient_clip_val", "accumulate_grad_batches")}
        trainer = pl.Trainer(
            **settings, max_steps=2, precision=precision, logger=False, enable_progress_bar=False,  # type: ignore[arg-type]
            enable_checkpointing=False, enable_model_summary=False, strategy=strategy(),
            callbacks=[TrainingMonitor(), peaks],
        )  # fmt: skip
        with (
            patch.object(StableDiffusion, "load", load_sd15),
            patch("torch.nn.functional.scaled_dot_product_attention", fused_attention),
        ):
            trainer.fit(job.module, job.data)
    return peaks.gb


CASES = {
    "sd15.yaml": ("bf16-mixed", ["sd15.yaml"]),
    "low_memory.yaml": ("bf16-mixed", ["sd15.yaml", "low_memory.yaml"]),
    "lora.yaml": ("bf16-mixed", ["sd15.yaml", "lora.yaml"]),
    "webtoon/sd15.yaml": ("16-mixed", ["webtoon/sd15.yaml", "webtoon/subject.yaml"]),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", CASES)
def test_a_config_needs_the_memory_that_it_says(here: Path, sd15: Path, config: str) -> None:
    precision, layers = CASES[config]
    tiny.images(here / "girl", 5, 600), tiny.images(here / "class", 3, 600)
    argv = [f"--config={ROOT / 'configs' / layer}" for layer in layers]
    if config.startswith("webtoon"):
        argv += ["--model.variant=null", "--model.vae=null"]
    stated = float(re.search(r"([\d.]+) GB of its memory", (ROOT / "configs" / config).read_text())[1])
    peaks = predict(sd15, precision, argv)
    print(config, peaks)  # shown by `pytest -s`
    assert 0.9 * stated < round(max(peaks.values()), 1) <= stated
