"""Guided denoising loop as one function: requests to images."""

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, SchedulerMixin
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_dreambooth.diffusion.requests import Request, Sampler
from lightning_dreambooth.errors import TrainingError
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.sizes import Size

SAMPLERS = {
    "ddim": DDIMScheduler,  # Song et al. 2020 (arXiv:2010.02502), eta 0
    "dpm++": DPMSolverMultistepScheduler,  # DPM-Solver++ 2M, Lu et al. 2022 (arXiv:2211.01095)
    "euler": EulerDiscreteScheduler,  # Karras et al. 2022 (arXiv:2206.00364), Algorithm 1 without its correction
}
# Options that do not depend on the scheduler that the model happens to state, nor on a sampler's default.
FIXED = {
    "clip_sample": False,  # as StableDiffusionPipeline sets it: latents go beyond -1 ... 1
    "steps_offset": 1,  # as StableDiffusionPipeline sets it
    "algorithm_type": "dpmsolver++",  # other algorithms draw noise of their own
    "solver_order": 2,
}


def scheduler_for(model: StableDiffusion, sampler: Sampler) -> SchedulerMixin:
    """The sampler with the noise schedule of the model, and the other options that its config states."""
    return SAMPLERS[sampler].from_config(model.scheduler.config, **FIXED)


@torch.no_grad()
def sample(model: StableDiffusion, requests: Sequence[Request], size: Size) -> Float[Tensor, "images 3 height width"]:
    """Draws one image of a size per request, in [0, 1].

    The requests of one call must share steps, guidance scale and sampler. The initial noise of each image is drawn on
    the CPU from its own seed, as diffusers' pipeline does with `torch.Generator().manual_seed(seed)`.
    """
    settings, device = requests[0].settings, model.device
    shape = (1, *model.latent_shape(size))
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(request.seed)) for request in requests]
    scheduler = scheduler_for(model, settings.sampler)
    scheduler.set_timesteps(settings.steps)  # on the CPU, where schedulers read them without waiting for the device
    latents = torch.cat(noise).to(device) * scheduler.init_noise_sigma

    prompts = [request.prompt for request in requests]
    if settings.guided:
        prompts = [request.settings.negative_prompt for request in requests] + prompts
    conditioning = model.embed(model.tokenize(prompts))
    for t in scheduler.timesteps:
        # Both branches in one batch: one UNet call is faster than two.
        x = scheduler.scale_model_input(torch.cat([latents, latents]) if settings.guided else latents, t)
        prediction = model.predict(x, t, conditioning).float()
        if settings.guided:  # Ho & Salimans 2022 (arXiv:2207.12598), Eq. 6, whose w is our w - 1
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + settings.guidance_scale * (conditional - unconditional)
        latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
    return model.decode(latents)


def as_bytes(images: Float[Tensor, "n 3 height width"]) -> UInt8[Tensor, "n 3 height width"]:
    """Images in [0, 1] => bytes 0 ... 255, as files hold them.

    Raises:
        TrainingError: if a value is not finite; a file would show it as black.
    """
    if not images.isfinite().all():
        raise TrainingError("the model draws images that are not finite; try trainer.precision 32, or other weights")
    return (images * 255).round().to(torch.uint8)
