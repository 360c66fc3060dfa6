"""Losses for fixed images, noise and timesteps, so that only the model changes a curve."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_dreambooth import randomness
from lightning_dreambooth.data.concepts import TrainingImage
from lightning_dreambooth.data.images import View
from lightning_dreambooth.data.latents import load_pixels
from lightning_dreambooth.diffusion.objective import add_noise, squared_error, target
from lightning_dreambooth.distributed import gather_dict, shard
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

STRATA = 4  # timesteps per image, one in the middle of each quarter of the noise schedule
IMAGES = 4  # of each set: instance, held out, class


class FixedSample(NamedTuple):
    """The latents of an image with its prompt."""

    latents: Float[Tensor, "c h w"]
    prompt: str


def round_robin(concepts: Sequence[Sequence[TrainingImage]]) -> list[TrainingImage]:
    """The first IMAGES images of all concepts, one of each concept in turn."""
    turns = zip_longest(*concepts)
    return [image for turn in turns for image in turn if image is not None][:IMAGES]


@torch.no_grad()
def encode_fixed(model: StableDiffusion, images: Sequence[TrainingImage], resolution_px: int) -> list[FixedSample]:
    """Images => mean latents of their central squares, without anything random."""
    pixels = torch.stack([load_pixels(image.path, View(), resolution_px) for image in images])
    means, _ = model.encode(pixels.to(model.device)).chunk(2, dim=1)
    return [FixedSample(mean, image.prompt) for mean, image in zip(means, images, strict=True)]


def timesteps(noise_steps: int) -> Int[Tensor, " strata"]:
    """The middle of each stratum of [0, noise_steps)."""
    return torch.tensor([(2 * k + 1) * noise_steps // (2 * STRATA) for k in range(STRATA)])


@torch.no_grad()
def stratified_errors(
    model: StableDiffusion, fixed: FixedSample, seed: int, name: str, number: int
) -> Float[Tensor, " strata"]:
    """Squared error of the UNet's prediction at each timestep, for the image of that number in the set `name`."""
    alphas_bar, t = model.alphas_bar, timesteps(len(model.alphas_bar)).to(model.device)
    x0 = fixed.latents.to(model.device).expand(STRATA, *fixed.latents.shape)
    draws = range(number * STRATA, (number + 1) * STRATA)
    noise = randomness.normal(seed, f"fixed noise {name}", draws, fixed.latents.shape).to(model.device)
    conditioning = model.embed(model.tokenize([fixed.prompt] * STRATA))
    prediction = model.predict(add_noise(x0, noise, t, alphas_bar), t, conditioning)
    return squared_error(prediction, target(x0, noise, t, alphas_bar, model.prediction_type))


def fixed_noise_losses(
    model: StableDiffusion, sets: Mapping[str, Sequence[FixedSample]], seed: int
) -> dict[str, float]:
    """Mean error of each set, overall and at each timestep, as `loss/<set>` and `loss/<set>/t<timestep>`.

    All processes share the work and return the same values.
    """
    places = [(name, number) for name, images in sets.items() for number in range(len(images))]
    own = {
        f"{name} {number}": stratified_errors(model, sets[name][number], seed, name, number)
        for name, number in shard(places)
    }
    # One transfer from the device for all images; a process may have none.
    values = torch.stack([*own.values()]).tolist() if own else []
    errors = gather_dict(dict(zip(own, values, strict=True)))
    losses = {}
    strata = timesteps(len(model.alphas_bar)).tolist()
    for name, images in sets.items():
        means = torch.tensor([errors[f"{name} {number}"] for number in range(len(images))]).double().mean(0)
        losses[f"loss/{name}"] = means.mean().item()
        losses |= {f"loss/{name}/t{t}": mean for t, mean in zip(strata, means.tolist(), strict=True)}
    return losses
