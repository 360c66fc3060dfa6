"""The DreamBooth objective as pure functions of tensors.

Notation: x0 clean latents, eps noise, t timestep in [0, T), alphas_bar the cumulative product of (1 - beta). `rows` are
the rows of a batch: B instance rows, followed by B class rows when the prior is on; c, h, w are those of latents.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Loss(NamedTuple):
    """The objective and its two halves; `prior` is None without class rows."""

    total: Float[Tensor, ""]
    instance: Float[Tensor, ""]
    prior: Float[Tensor, ""] | None


# q(x_t | x_0), Ho et al. 2020 (arXiv:2006.11239), Eq. 4.
def add_noise(
    latents: Float[Tensor, "rows c h w"],
    noise: Float[Tensor, "rows c h w"],
    timesteps: Int[Tensor, " rows"],
    alphas_bar: Float[Tensor, " steps"],
) -> Float[Tensor, "rows c h w"]:
    """x0 and eps => x_t."""
    a = alphas_bar[timesteps].view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


# v = alpha eps - sigma x0, Salimans & Ho 2022 (arXiv:2202.00512), Sec. 4.
def target(
    latents: Float[Tensor, "rows c h w"],
    noise: Float[Tensor, "rows c h w"],
    timesteps: Int[Tensor, " rows"],
    alphas_bar: Float[Tensor, " steps"],
    prediction_type: str,
) -> Float[Tensor, "rows c h w"]:
    """x0, eps and t => the target of the UNet: the noise (`epsilon`) or the velocity (`v_prediction`)."""
    if prediction_type == "epsilon":
        return noise
    a = alphas_bar[timesteps].view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


# min-SNR-gamma, Hang et al. 2023 (arXiv:2303.09556), Sec. 3.4: min(SNR, gamma) on the x0 error, restated for eps and v.
def min_snr_weights(
    timesteps: Int[Tensor, " rows"], alphas_bar: Float[Tensor, " steps"], gamma: float, prediction_type: str
) -> Float[Tensor, " rows"]:
    """Weight of each row's squared error, in [0, 1]; the SNR may be 0 or infinite."""
    a = alphas_bar[timesteps]
    snr = a / (1 - a)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1)
    return snr.clamp(max=gamma) / (snr + 1)


def squared_error(
    prediction: Float[Tensor, "rows c h w"],
    expected: Float[Tensor, "rows c h w"],
    weights: Float[Tensor, "rows 1 h w"] | None = None,
) -> Float[Tensor, " rows"]:
    """Mean squared error of each row, in fp32 whatever the prediction's dtype; of a masked loss, with its weights.

    The mean is over all places, so that a weight is the fraction that remains of a place's gradient.
    """
    errors = (prediction.float() - expected.float()).square()
    return (errors if weights is None else errors * weights).flatten(1).mean(1)


# Prior-preservation objective, Ruiz et al. 2023 (arXiv:2208.12242), Eq. 2.
def prior_preservation_loss(
    instance: Float[Tensor, " b"], prior: Float[Tensor, " b"] | None, prior_weight: float
) -> Loss:
    """Errors of the instance rows and of the class rows (None without the prior) => the loss and both means."""
    if prior is None:
        return Loss(instance.mean(), instance.mean(), None)
    return Loss(instance.mean() + prior_weight * prior.mean(), instance.mean(), prior.mean())


def posterior_sample(
    moments: Float[Tensor, "rows twice_c h w"], noise: Float[Tensor, "rows c h w"]
) -> Float[Tensor, "rows c h w"]:
    """Mean and standard deviation of the VAE's posterior => one sample of it (Kingma & Welling 2014, Eq. 10)."""
    mean, std = moments.chunk(2, dim=1)
    return torch.addcmul(mean, std, noise)
