"""Random numbers of training rows: noise, timesteps, and which of its latents an image is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_dreambooth import randomness


class Draws(NamedTuple):
    """What is random in the rows of a batch.

    Attributes:
        posterior: Standard normal numbers that pick latents from the VAE's posterior.
        noise: The noise, its offset included.
        timesteps: The timesteps.
    """

    posterior: Float[Tensor, "rows c h w"]
    noise: Float[Tensor, "rows c h w"]
    timesteps: Int[Tensor, " rows"]


@dataclass(frozen=True)
class DrawSource:
    """Draws as functions of sample indices; instance and class row of a sample have separate ones.

    Args:
        seed: Seed of all draws.
        noise_offset: Strength of the per-channel noise offset.
        latent_shape: Channels, height and width of the latents of squares.
        noise_steps: Number of timesteps of the noise schedule.
    """

    seed: int
    noise_offset: float
    latent_shape: tuple[int, int, int]
    noise_steps: int

    def __call__(self, indices: Sequence[int], halves: Sequence[str], size: tuple[int, int] | None = None) -> Draws:
        """Indices of samples => the draws of their rows, half by half; of squares unless height and width are given."""
        latent_shape = (self.latent_shape[0], *(size or self.latent_shape[1:]))
        noise = self._normal("noise", indices, halves, latent_shape)
        if self.noise_offset:
            shape = (self.latent_shape[0], 1, 1)
            noise = noise + self.noise_offset * self._normal("noise offset", indices, halves, shape)
        timesteps = [randomness.integers(self.seed, f"timestep {half}", indices, self.noise_steps) for half in halves]
        return Draws(self._normal("posterior", indices, halves, latent_shape), noise, torch.cat(timesteps))

    def _normal(self, purpose: str, indices: Sequence[int], halves: Sequence[str], shape: tuple[int, ...]) -> Tensor:
        return torch.cat([randomness.normal(self.seed, f"{purpose} {half}", indices, shape) for half in halves])
