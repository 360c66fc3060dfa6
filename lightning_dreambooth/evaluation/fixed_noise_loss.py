"""Losses that do not jump: the same pictures, noise and timesteps every time, so that a curve shows the model alone."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_dreambooth import randomness
from lightning_dreambooth.data.concepts import Picture
from lightning_dreambooth.data.images import View
from lightning_dreambooth.data.latents import read_bytes
from lightning_dreambooth.diffusion.objective import add_noise, squared_error, target
from lightning_dreambooth.distributed import merged, share
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

STRATA = 4  # timesteps per picture, one in the middle of each quarter of the noise schedule
PICTURES = 4  # of each set: instance, held out, class


class Fixed(NamedTuple):
    """A picture with the prompt it belongs to."""

    latents: Float[Tensor, "c h w"]
    prompt: str


@torch.no_grad()
def encoded(model: StableDiffusion, pictures: Sequence[Picture], resolution_px: int) -> list[Fixed]:
    """Pictures as they are trained on but for everything random."""
    pixels = torch.stack([read_bytes(picture.path, View(), resolution_px) for picture in pictures])
    means, _ = model.encode(pixels.to(model.device)).chunk(2, dim=1)
    return [Fixed(mean, picture.prompt) for mean, picture in zip(means, pictures, strict=True)]


def dealt(concepts: Sequence[Sequence[Picture]]) -> list[Picture]:
    """The first pictures of all concepts, one of each in turn."""
    turns = zip_longest(*concepts)
    return [picture for turn in turns for picture in turn if picture is not None][:PICTURES]


def timesteps(noise_steps: int) -> Int[Tensor, " strata"]:
    """The middle of each stratum of [0, noise_steps)."""
    return torch.tensor([(2 * k + 1) * noise_steps // (2 * STRATA) for k in range(STRATA)])


@torch.no_grad()
def stratified_errors(
    model: StableDiffusion, latents: Float[Tensor, "c h w"], prompt: str, seed: int, name: str, number: int
) -> Float[Tensor, " strata"]:
    """Squared error of the UNet's answer at each timestep for a set's picture of that number, with noise of its own."""
    alphas_bar, t = model.alphas_bar, timesteps(len(model.alphas_bar)).to(model.device)
    x0 = latents.to(model.device).expand(STRATA, *latents.shape)
    noise = randomness.normal(seed, f"fixed noise {name}", range(number * STRATA, (number + 1) * STRATA), latents.shape)
    noise = noise.to(model.device)
    context = model.embed(model.tokenize([prompt]).to(model.device))
    noisy = add_noise(x0, noise, t, alphas_bar)
    prediction = model.unet(noisy, t, context.expand(STRATA, -1, -1), return_dict=False)[0]
    return squared_error(prediction, target(x0, noise, t, alphas_bar, model.prediction_type))


def fixed_losses(model: StableDiffusion, sets: Mapping[str, Sequence[Fixed]], seed: int) -> dict[str, float]:
    """Mean error of each set, overall and at each timestep, as `loss/<set>` and `loss/<set>/t<timestep>`.

    The pictures are shared out among all processes; every process returns the same figures.
    """
    places = [(name, number) for name, pictures in sets.items() for number in range(len(pictures))]
    mine = {
        f"{name} {number}": stratified_errors(model, *sets[name][number], seed, name, number).tolist()
        for name, number in share(places)
    }
    errors = merged(mine)
    losses = {}
    for name, pictures in sets.items():
        means = torch.tensor([errors[f"{name} {number}"] for number in range(len(pictures))]).double().mean(0)
        losses[f"loss/{name}"] = means.mean().item()
        strata = timesteps(len(model.alphas_bar)).tolist()
        losses |= {f"loss/{name}/t{t}": mean for t, mean in zip(strata, means.tolist(), strict=True)}
    return losses
