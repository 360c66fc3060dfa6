"""Reading back of what is exported: plain diffusers must compute from the files what the model computes."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from lightning_dreambooth import randomness
from lightning_dreambooth.errors import TrainingError
from lightning_dreambooth.models.diffusers_folder import save_configs
from lightning_dreambooth.models.lora import adapted, without_adapters
from lightning_dreambooth.models.lora_files import quiet
from lightning_dreambooth.models.lora_layouts import read_tensors
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

# Rounding may move a prediction by these shares: a model that computes in bf16 is off by up to a hundredth, and a file
# in half precision by a thousandth. A share of what adapters change is allowed, too.
SHARE_OF_CHANGE = 0.1
SHARE_OF_PREDICTION = {"autocast": 0.02, "fp32": 0.003}


class Expected(NamedTuple):
    """What a model predicts from one noise for one prompt; a reader of its files must predict the same.

    Attributes:
        ids: Token ids of the prompt.
        noise: The noise, at the timestep in the middle.
        timestep: That timestep.
        prediction: The predicted noise or velocity.
        change: How far adapters move the prediction; 0 without adapters.
        rounding: How far rounding may move it.
    """

    ids: Tensor
    noise: Tensor
    timestep: Tensor
    prediction: Tensor
    change: float
    rounding: float


@torch.no_grad()
def expected(model: StableDiffusion, prompt: str, computing: AbstractContextManager[Any] | None = None) -> Expected:
    """Predicts with a model, inside the context in which it computes, such as autocast."""
    side = 2 ** len(model.unet.config.block_out_channels)  # every level of the UNet halves it
    noise = randomness.normal(0, "reading back", [0], (model.unet.config.in_channels, side, side))
    timestep, ids = torch.tensor([len(model.alphas_bar) // 2]), model.tokenize([prompt])

    def predict() -> Tensor:
        return model.predict(noise.to(model.device), timestep.to(model.device), model.embed(ids)).float().cpu()

    with computing or nullcontext():
        kind = "autocast" if torch.is_autocast_enabled(model.device.type) else "fp32"
        prediction = predict()
        with without_adapters(model):
            change = (prediction - predict()).norm().item()
    rounding = SHARE_OF_PREDICTION[kind] * prediction.norm().item()
    return Expected(ids.values.cpu(), noise, timestep, prediction, change, rounding)


def check_lora_file(wanted: Expected, base: ModelFiles, file: Path) -> None:
    """Raises TrainingError unless diffusers reads all adapters of a file, and predicts with them what is wanted."""
    model = StableDiffusion.load(base)
    parts: list[Any] = [model.vae, model.text_encoder, model.tokenizer, model.unet, model.scheduler]
    try:
        with quiet():
            pipeline = StableDiffusionPipeline(*parts, safety_checker=None, feature_extractor=None)
            pipeline.load_lora_weights(str(file))
    except Exception as error:  # the libraries may raise anything
        raise TrainingError(f"{file.name} is not kept: diffusers cannot read it ({error!r})") from error
    read, written = sum(1 for part in model.trainable.values() for _ in adapted(part)), read_tensors(file).layers
    if read != written:
        raise TrainingError(f"{file.name} is not kept: diffusers reads {read} of {written} adapters")
    _check(wanted, pipeline, file)


def check_folder(wanted: Expected, folder: Path) -> None:
    """Raises TrainingError unless diffusers predicts with the pipeline in a folder what is wanted."""
    _check(wanted, StableDiffusionPipeline.from_pretrained(folder, low_cpu_mem_usage=False), folder)


def check_single_file(wanted: Expected, model: StableDiffusion, file: Path) -> None:
    """Raises TrainingError unless diffusers predicts with a single file and a model's configs what is wanted."""
    with TemporaryDirectory() as configs:
        save_configs(model, Path(configs))
        read = StableDiffusionPipeline.from_single_file(str(file), config=configs, local_files_only=True)
    _check(wanted, read, file)


@torch.no_grad()
def _check(wanted: Expected, pipeline: Any, what: Path) -> None:
    hidden_states = pipeline.text_encoder(wanted.ids)[0]
    error = (pipeline.unet(wanted.noise, wanted.timestep, hidden_states).sample - wanted.prediction).norm().item()
    if not error <= max(SHARE_OF_CHANGE * wanted.change, wanted.rounding):
        share = error / wanted.prediction.norm().item()
        raise TrainingError(f"{what.name} is not kept: what diffusers predicts from it differs by {share:.1%}")
