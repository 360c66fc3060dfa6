from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from helpers import tiny

from lightning_dreambooth.diffusion.requests import Request, SamplingSettings
from lightning_dreambooth.diffusion.sampling import sample
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

SCHEDULERS = {"ddim": DDIMScheduler, "dpm++": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_a_sample_is_the_image_that_diffusers_draws(
    model: StableDiffusion, tiny_sd: Path, sampler: str, guidance_scale: float
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = SCHEDULERS[sampler].from_config(pipeline.scheduler.config)
    expected = pipeline(
        "a photo of sks girl", negative_prompt="ugly", num_inference_steps=5, guidance_scale=guidance_scale,
        height=32, width=32, generator=torch.Generator().manual_seed(3), output_type="pt",
    ).images  # fmt: skip
    ours = sample(model, [Request("a photo of sks girl", 3, SamplingSettings("ugly", 5, guidance_scale, sampler))], 32)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_v_prediction_is_sampled_as_diffusers_does(tmp_path: Path) -> None:
    folder = tiny.stable_diffusion(tmp_path / "sd", prediction_type="v_prediction")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a girl", num_inference_steps=5, generator=torch.Generator().manual_seed(3), output_type="pt"
    ).images
    ours = sample(StableDiffusion.load(ModelFiles(str(folder))), [Request("a girl", 3, SamplingSettings(steps=5))], 32)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_an_image_is_the_same_alone_and_in_a_batch(model: StableDiffusion) -> None:
    requests = [Request(prompt, seed, SamplingSettings(steps=3)) for prompt in ("a girl", "a boy") for seed in (1, 2)]
    together = sample(model, requests, 32)
    alone = torch.cat([sample(model, [request], 32) for request in requests])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_guidance_leads_from_the_negative_prompt_by_its_scale(model: StableDiffusion) -> None:
    """One DDIM step by hand: eps = eps_negative + w * (eps_prompt - eps_negative), then x0 from it, decoded."""
    ugly = SamplingSettings("ugly", 1, 3.0, "ddim")
    guided = sample(model, [Request("a girl", 0, ugly)], 32)
    latents = torch.randn((1, *model.latent_shape(32)), generator=torch.Generator().manual_seed(0))
    scheduler = DDIMScheduler.from_config(model.scheduler.config)
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    with torch.no_grad():
        negative, prompt = (
            model.predict(latents, t, model.embed(model.tokenize([text]))) for text in ("ugly", "a girl")
        )
    expected = scheduler.step(negative + 3.0 * (prompt - negative), t, latents).prev_sample
    torch.testing.assert_close(guided, model.decode(expected), atol=1e-4, rtol=0)
    plain = sample(model, [Request("a girl", 0, SamplingSettings("", 1, 3.0, "ddim"))], 32)
    assert not torch.equal(plain, guided)
