import subprocess
import sys

import pytest

from lightning_dreambooth.diffusion.cost import unet_evaluations
from lightning_dreambooth.diffusion.requests import ImageJob, Request, SamplingSettings, batches, check_seed
from lightning_dreambooth.errors import InputError


def test_batches_hold_jobs_that_share_their_settings_in_order() -> None:
    requests = [Request("a", seed, SamplingSettings(steps=steps)) for steps in (3, 4) for seed in range(3)]
    jobs = [ImageJob(number, request) for number, request in enumerate(requests)]
    cut = batches(jobs, 2)
    assert [len(batch) for batch in cut] == [2, 1, 2, 1]
    assert [job for batch in cut for job in batch] == jobs


def test_images_of_one_batch_may_have_different_negative_prompts() -> None:
    jobs = [ImageJob(i, Request("a", 0, SamplingSettings(negative_prompt=text))) for i, text in enumerate(("", "ugly"))]
    assert batches(jobs, 4) == [jobs]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0, must lie in 1 ... 998"),
        ({"steps": 999}, "steps is 999, must lie in 1 ... 998"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0, must lie in 0 ... 1,000"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingSettings(**values)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match=r"seed is -1, must lie in 0 \.\.\. 4,294,967,295"):
        check_seed(-1)


def test_guidance_doubles_the_cost_of_an_image() -> None:
    assert unet_evaluations([Request("", 0, SamplingSettings(steps=12, guidance_scale=7.5))]) == 24
    assert unet_evaluations([Request("", 0, SamplingSettings(steps=12, guidance_scale=1.0))]) == 12


def test_requests_need_no_torch() -> None:
    code = "import sys, lightning_dreambooth.diffusion.requests; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
