"""Reading back of exported adapters: plain diffusers must compute from the files what the module computes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from lightning_dreambooth import randomness
from lightning_dreambooth.errors import TrainingError
from lightning_dreambooth.models.lora import adapted, without_adapters
from lightning_dreambooth.models.lora_files import quiet
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.module import DreamBooth

# The module may compute in bf16, which is off by about a hundredth, and what the adapters add may be as small.
SHARE_OF_CHANGE = 0.1
SHARE_OF_PREDICTION = 0.02


def check_lora_file(module: DreamBooth, file: Path, prompt: str) -> None:
    """Raises TrainingError unless diffusers reads all adapters of a file, and computes with them what a module does."""
    base = StableDiffusion.load(module.files)
    parts: list[Any] = [base.vae, base.text_encoder, base.tokenizer, base.unet, base.scheduler]
    with quiet():
        pipeline = StableDiffusionPipeline(*parts, safety_checker=None, feature_extractor=None)
        pipeline.load_lora_weights(str(file))
    read, written = (_count(model.trainable) for model in (base, module.model))
    if read != written:
        raise TrainingError(f"{file.name}: diffusers reads {read} of {written} adapters; it is not kept")
    _check(module, pipeline, file, prompt)


def check_folder(module: DreamBooth, folder: Path, prompt: str) -> None:
    """Raises TrainingError unless diffusers computes with the pipeline in a folder what a module does."""
    _check(module, StableDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False), folder, prompt)


def _count(parts: Mapping[str, nn.Module]) -> int:
    return sum(1 for part in parts.values() for _ in adapted(part))


@torch.no_grad()
def _check(module: DreamBooth, pipeline: Any, what: Path, prompt: str) -> None:
    ids = module.model.tokenize([prompt])
    model = module.model
    noise = randomness.normal(0, "reading back", [0], _small_latents(model))
    timestep = torch.tensor([len(model.alphas_bar) // 2])

    def ours() -> Tensor:
        with module.trainer.precision_plugin.forward_context():
            return model.predict(noise.to(model.device), timestep.to(model.device), model.embed(ids)).float().cpu()

    theirs = pipeline.unet(noise, timestep, pipeline.text_encoder(ids.values.cpu())[0]).sample
    tuned = ours()
    with without_adapters(model):
        change = (tuned - ours()).norm()
    error = (theirs - tuned).norm()
    if not error <= max(SHARE_OF_CHANGE * change, SHARE_OF_PREDICTION * tuned.norm()):
        raise TrainingError(
            f"{what.name} is not kept: diffusers predicts noise from it that differs by {error / tuned.norm():.1%}"
        )


def _small_latents(model: StableDiffusion) -> tuple[int, int, int]:
    """A shape of latents that every level of the UNet can halve."""
    side = 2 ** len(model.unet.config.block_out_channels)
    return (model.unet.config.in_channels, side, side)
