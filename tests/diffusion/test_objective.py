import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from lightning_dreambooth.diffusion.objective import (
    add_noise,
    min_snr_weights,
    posterior_sample,
    prior_preservation_loss,
    squared_error,
    target,
)  # fmt: skip

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ALPHAS_BAR = SCHEDULER.alphas_cumprod
LATENTS, NOISE = torch.randn(2, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
TIMESTEPS = torch.tensor([0, 1, 250, 500, 900, 999])


def test_add_noise_matches_diffusers() -> None:
    expected = SCHEDULER.add_noise(LATENTS, NOISE, TIMESTEPS)
    assert torch.equal(add_noise(LATENTS, NOISE, TIMESTEPS, ALPHAS_BAR), expected)


def test_velocity_matches_diffusers() -> None:
    expected = SCHEDULER.get_velocity(LATENTS, NOISE, TIMESTEPS)
    assert torch.equal(target(LATENTS, NOISE, TIMESTEPS, ALPHAS_BAR, "v_prediction"), expected)


def test_epsilon_target_is_the_noise() -> None:
    assert target(LATENTS, NOISE, TIMESTEPS, ALPHAS_BAR, "epsilon") is NOISE


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weight_times_error_is_clamped_snr_times_x0_error(kind: str) -> None:
    prediction = target(LATENTS, NOISE, TIMESTEPS, ALPHAS_BAR, kind) + 0.1
    noisy = add_noise(LATENTS, NOISE, TIMESTEPS, ALPHAS_BAR).double()
    a, sigma = ALPHAS_BAR[TIMESTEPS].double().sqrt(), (1 - ALPHAS_BAR[TIMESTEPS].double()).sqrt()
    a, sigma = a.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1)
    x0 = (noisy - sigma * prediction) / a if kind == "epsilon" else a * noisy - sigma * prediction
    x0_error = (x0 - LATENTS).square().flatten(1).mean(1)
    clamped = compute_snr(SCHEDULER, TIMESTEPS).clamp(max=5)
    error = squared_error(prediction, target(LATENTS, NOISE, TIMESTEPS, ALPHAS_BAR, kind))
    weighted = error * min_snr_weights(TIMESTEPS, ALPHAS_BAR, 5.0, kind)
    torch.testing.assert_close(weighted, (clamped * x0_error).float(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "alpha_bar", "weight"),
    [("epsilon", 0.0, 1), ("epsilon", 1.0, 0), ("v_prediction", 0.0, 0), ("v_prediction", 1.0, 0)],
)
def test_min_snr_weights_have_their_limits_at_pure_noise_and_at_none(kind: str, alpha_bar: float, weight: int) -> None:
    assert min_snr_weights(torch.tensor([0]), torch.tensor([alpha_bar]), 5.0, kind) == weight


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_objective_is_finite_at_every_timestep_of_a_zero_terminal_snr(kind: str) -> None:
    alphas_bar = DDPMScheduler.from_config(SCHEDULER.config, rescale_betas_zero_snr=True).alphas_cumprod
    assert alphas_bar[-1] == 0
    t = torch.arange(1000)
    x0, eps = torch.randn(2, 1000, 4, 2, 2, generator=torch.Generator().manual_seed(0)).unbind()
    assert torch.equal(add_noise(x0, eps, t, alphas_bar)[-1], eps[-1])
    error = squared_error(add_noise(x0, eps, t, alphas_bar), target(x0, eps, t, alphas_bar, kind))
    weights = min_snr_weights(t, alphas_bar, 5.0, kind)
    assert (error * weights).isfinite().all()
    assert ((weights >= 0) & (weights <= 1)).all()


def test_the_loss_is_the_instance_mean_plus_the_weighted_prior_mean() -> None:
    loss = prior_preservation_loss(torch.tensor([1.0, 3.0]), torch.tensor([10.0, 30.0]), prior_weight=0.5)
    assert (loss.instance, loss.prior, loss.total) == (2, 20, 12)


def test_without_class_rows_the_loss_is_the_instance_mean() -> None:
    loss = prior_preservation_loss(torch.tensor([1.0, 3.0, 5.0]), None, prior_weight=0.0)
    assert (loss.total, loss.instance, loss.prior) == (3, 3, None)


def test_loss_gradient_is_linear_in_the_prior_weight() -> None:
    def gradient(prior_weight: float) -> torch.Tensor:
        prediction = LATENTS.clone().requires_grad_()
        prior_preservation_loss(*squared_error(prediction, NOISE).chunk(2), prior_weight).total.backward()
        return prediction.grad

    one, three = gradient(1.0), gradient(3.0)
    assert torch.equal(one[:3], three[:3])
    torch.testing.assert_close(three[3:], 3 * one[3:])


def test_posterior_sample_scales_noise_by_the_standard_deviation() -> None:
    moments = torch.cat([torch.full((1, 2, 2, 2), 5.0), torch.full((1, 2, 2, 2), 0.5)], dim=1)
    assert torch.equal(posterior_sample(moments, torch.full((1, 2, 2, 2), 2.0)), torch.full((1, 2, 2, 2), 6.0))
