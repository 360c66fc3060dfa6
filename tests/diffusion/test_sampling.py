import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

from lightning_dreambooth.diffusion.requests import MAX_STEPS, Request, SamplingSettings
from lightning_dreambooth.diffusion.sampling import sample, scheduler_for
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


LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PUBLISHED = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None}
ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
# As models publish them; the last ones leave out what the defaults of samplers would then fill in.
CONFIGS = {
    "SD 1.4, SD 1.5": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, **LATENT, **PUBLISHED},
    "SD 2 base": {"_class_name": "PNDMScheduler", "prediction_type": "epsilon", **LATENT, **PUBLISHED},
    "SD 2.1": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", **LATENT, **PUBLISHED},
    "zero terminal SNR": {"_class_name": "DDIMScheduler", **LATENT, **PUBLISHED, **ZERO_TERMINAL_SNR},
    "zero terminal SNR, Euler": {"_class_name": "EulerDiscreteScheduler", **LATENT, **ZERO_TERMINAL_SNR},
    "Euler": {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon", **LATENT},
    "Euler, leading": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", **LATENT},
    "Euler, Karras": {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, **LATENT},
    "PNDM": {"_class_name": "PNDMScheduler", **LATENT},
    "DDPM": {"_class_name": "DDPMScheduler", "clip_sample": True, "variance_type": "fixed_small", **LATENT},
    "DDIM": {"_class_name": "DDIMScheduler", "steps_offset": 0, **LATENT},
    "DPM++, zero terminal SNR": {"_class_name": "DPMSolverMultistepScheduler", **LATENT, **ZERO_TERMINAL_SNR},
}  # fmt: skip


def with_scheduler(tiny_sd: Path, folder: Path, config: dict[str, object]) -> Path:
    """The tiny model with another scheduler config."""
    shutil.copytree(tiny_sd, folder)
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", config["_class_name"]]}))
    return folder


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the pipeline, where it sets clip_sample and steps_offset
@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_sampler_draws_with_every_scheduler_config_what_the_pipeline_draws(
    tiny_sd: Path, tmp_path: Path, config: dict[str, object], sampler: str
) -> None:
    folder = with_scheduler(tiny_sd, tmp_path / "sd", config)
    own = StableDiffusionPipeline.from_pretrained(folder)
    scheduler = SCHEDULERS[sampler].from_config(own.scheduler.config)
    pipeline = StableDiffusionPipeline(**own.components | {"scheduler": scheduler}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a girl", num_inference_steps=5, generator=torch.Generator().manual_seed(3), output_type="pt"
    ).images
    model = StableDiffusion.load(ModelFiles(str(folder)))
    ours = sample(model, [Request("a girl", 3, SamplingSettings(steps=5, sampler=sampler))], 32)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


BARE = (
    "DDIMScheduler",
    "DEISMultistepScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "TCDScheduler",
)


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_what_a_config_does_not_state_of_the_noise_is_the_default_of_the_models_own_scheduler(
    tiny_sd: Path, tmp_path: Path, name: str, sampler: str
) -> None:
    folder = with_scheduler(tiny_sd, tmp_path / "sd", {"_class_name": name})
    model = StableDiffusion.load(ModelFiles(str(folder)))
    own = getattr(diffusers, name)()
    assert torch.equal(model.alphas_bar, own.alphas_cumprod)
    assert torch.equal(scheduler_for(model, sampler).alphas_cumprod, own.alphas_cumprod)


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("algorithm", ["dpmsolver", "sde-dpmsolver++", "deis"])
def test_no_sampler_draws_noise_of_its_own(tiny_sd: Path, tmp_path: Path, algorithm: str, sampler: str) -> None:
    config = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": algorithm, "solver_order": 3, **LATENT}
    model = StableDiffusion.load(ModelFiles(str(with_scheduler(tiny_sd, tmp_path / "sd", config))))
    request = Request("a girl", 3, SamplingSettings(steps=4, sampler=sampler))
    assert torch.equal(sample(model, [request], 32), sample(model, [request], 32))


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, MAX_STEPS])
def test_every_number_of_steps_that_is_allowed_has_timesteps_of_the_schedule(
    model: StableDiffusion, sampler: str, steps: int
) -> None:
    scheduler = scheduler_for(model, sampler)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps
    assert 0 <= scheduler.timesteps.min() <= scheduler.timesteps.max() < len(model.alphas_bar)


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
