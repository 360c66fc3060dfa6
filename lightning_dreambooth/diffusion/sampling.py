"""Prompts and seeds to images: the guided denoising loop as one function."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, SchedulerMixin
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_dreambooth.errors import InputError, TrainingError
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

Sampler = Literal["ddim", "dpm++", "euler"]

SAMPLERS = {
    "ddim": DDIMScheduler,  # Song et al. 2020 (arXiv:2010.02502), eta 0
    "dpm++": DPMSolverMultistepScheduler,  # DPM-Solver++ 2M, Lu et al. 2022 (arXiv:2211.01095)
    "euler": EulerDiscreteScheduler,  # Karras et al. 2022 (arXiv:2206.00364), Algorithm 2 without churn
}

NOISE_STEPS = 1000  # of every Stable Diffusion 1.x and 2.x


class Request(NamedTuple):
    """All that decides an image besides the weights."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    steps: int = 25
    guidance_scale: float = 7.5
    sampler: Sampler = "ddim"


def check_request(request: Request) -> None:
    """Raises InputError if an image cannot be made so."""
    if not 1 <= request.steps <= NOISE_STEPS:
        raise InputError(f"steps is {request.steps}, must lie in 1 ... {NOISE_STEPS}")
    if request.guidance_scale < 0:
        raise InputError(f"guidance_scale is {request.guidance_scale}, must be 0 or more (1 switches guidance off)")
    if request.seed < 0:
        raise InputError(f"seed is {request.seed}, must be 0 or more")


def scheduler_for(model: StableDiffusion, sampler: Sampler) -> SchedulerMixin:
    """The sampler on the model's own noise schedule."""
    return SAMPLERS[sampler].from_config(model.scheduler.config)


@torch.no_grad()
def sample(
    model: StableDiffusion, requests: Sequence[Request], resolution_px: int
) -> Float[Tensor, "images 3 height width"]:
    """Draws one square image per request, in [0, 1], the same whether alone or in a batch.

    Requests of one call share steps, guidance scale and sampler. The starting noise of each is drawn on the CPU from
    its own seed, as diffusers' pipeline does with `torch.Generator().manual_seed(seed)`.
    """
    _, _, _, steps, w, sampler = requests[0]
    device = model.device
    shape = (1, *model.latent_shape(resolution_px))
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)) for request in requests]
    scheduler = scheduler_for(model, sampler)
    scheduler.set_timesteps(steps, device=device)
    latents = torch.cat(noise).to(device) * scheduler.init_noise_sigma

    guided = w > 1  # at 1 the unconditional branch cancels out
    prompts = [request.negative_prompt for request in requests] * guided + [request.prompt for request in requests]
    context = model.embed(model.tokenize(prompts).to(device))
    for t in scheduler.timesteps:
        # Both branches in one batch: one UNet call is faster than two.
        x = scheduler.scale_model_input(torch.cat([latents] * (1 + guided)), t)
        eps = model.unet(x, t, context, return_dict=False)[0].float()
        if guided:
            eps_uncond, eps_text = eps.chunk(2)
            eps = eps_uncond + w * (eps_text - eps_uncond)
        latents = scheduler.step(eps, t, latents, return_dict=False)[0]
    return model.decode(latents)


def as_bytes(images: Float[Tensor, "n 3 height width"]) -> UInt8[Tensor, "n 3 height width"]:
    """Images in [0, 1] => what a file holds, 0 ... 255.

    Raises:
        TrainingError: if the model has drawn NaN, which a file would show as black.
    """
    if not images.isfinite().all():
        raise TrainingError("the model draws images that are not finite; try trainer.precision 32, or other weights")
    return (images * 255).round().to(torch.uint8)


def same_settings(request: Request) -> tuple[object, ...]:
    """What requests of one batch must agree in."""
    return request.steps, request.guidance_scale, request.sampler


def batches(requests: Sequence[Request], batch_size: int) -> list[list[Request]]:
    """Requests in order, cut into batches that can be drawn in one call of `sample`."""
    cut: list[list[Request]] = []
    for request in requests:
        if cut and len(cut[-1]) < batch_size and same_settings(cut[-1][0]) == same_settings(request):
            cut[-1].append(request)
        else:
            cut.append([request])
    return cut
