from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from helpers import tiny

from lightning_dreambooth.diffusion.sampling import Request, batches, check_request, sample
from lightning_dreambooth.errors import InputError
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
    ours = sample(model, [Request("a photo of sks girl", 3, "ugly", 5, guidance_scale, sampler)], 32)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_v_prediction_is_sampled_as_diffusers_does(tmp_path: Path) -> None:
    folder = tiny.stable_diffusion(tmp_path / "sd", prediction_type="v_prediction")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "a girl", num_inference_steps=5, generator=torch.Generator().manual_seed(3), output_type="pt"
    ).images
    ours = sample(StableDiffusion.load(folder), [Request("a girl", 3, steps=5)], 32)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_a_image_is_the_same_alone_and_in_a_batch(model: StableDiffusion) -> None:
    requests = [Request(prompt, seed, steps=3) for prompt in ("a girl", "a boy") for seed in (1, 2)]
    together = sample(model, requests, 32)
    alone = torch.cat([sample(model, [request], 32) for request in requests])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_guidance_without_a_negative_prompt_leads_away_from_the_empty_one(model: StableDiffusion) -> None:
    default, empty, ugly = (
        sample(model, [Request("a girl", 0, negative, 3)], 32)
        for negative in (Request("", 0).negative_prompt, "", "ugly")
    )
    assert torch.equal(default, empty)
    assert not torch.equal(default, ugly)


def test_batches_hold_requests_that_share_their_settings_in_order() -> None:
    requests = [Request("a", seed, steps=steps) for steps in (3, 4) for seed in range(3)]
    cut = batches(requests, 2)
    assert [len(batch) for batch in cut] == [2, 1, 2, 1]
    assert [request for batch in cut for request in batch] == requests


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("a", 0, steps=0), "steps is 0, must lie in 1 ... 1000"),
        (Request("a", 0, guidance_scale=-1.0), "guidance_scale is -1.0, must be 0 or more"),
        (Request("a", -1), "seed is -1, must be 0 or more"),
    ],
)
def test_an_impossible_request_is_refused(request_: Request, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_request(request_)
