"""Requests for images: prompts, seeds and sampling settings. Plain values, no torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning_dreambooth.bounds import MAX_SEED, check_range
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.configs import NOISE_STEPS

Sampler = Literal["ddim", "dpm++", "euler"]

MAX_STEPS = NOISE_STEPS - 2  # DPM++ may divide the schedule into steps + 1 intervals and count timesteps from 1
MAX_GUIDANCE = 1000
MAX_PROMPT = 10_000  # characters; the models read 77 tokens
MAX_IMAGES = 100_000  # of one prompt or class


def check_prompt(prompt: str, name: str) -> None:
    """Raises InputError if a prompt has more than MAX_PROMPT characters."""
    if len(prompt) > MAX_PROMPT:
        raise InputError(
            f"{name} has {len(prompt):,} characters, must have at most {MAX_PROMPT:,}: {prompt[:40]!r} ..."
        )


@dataclass(frozen=True)
class SamplingSettings:
    """How an image is sampled, besides its prompt and seed.

    Args:
        negative_prompt: Prompt that guidance leads away from.
        steps: Sampling steps, 1 ... 998.
        guidance_scale: Classifier-free guidance scale w (arXiv:2207.12598), 0 or more; 1 or less switches guidance off.
        sampler: Algorithm that removes the noise.

    Raises:
        InputError: if a value is out of its bounds.
    """

    negative_prompt: str = ""
    steps: int = 25
    guidance_scale: float = 7.5
    sampler: Sampler = "ddim"

    def __post_init__(self) -> None:
        check_prompt(self.negative_prompt, "negative_prompt")
        if not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"steps is {self.steps}, must lie in 1 ... {MAX_STEPS}")
        check_range("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE, "1 or less switches guidance off")

    @property
    def guided(self) -> bool:
        """Whether guidance is on: at 1 the unconditional branch cancels out."""
        return self.guidance_scale > 1


class Request(NamedTuple):
    """What is asked for one image; weights, resolution and precision decide it as well."""

    prompt: str
    seed: int
    settings: SamplingSettings = SamplingSettings()

    def as_dict(self) -> dict[str, Any]:
        """The request as a flat mapping of plain values."""
        return {"prompt": self.prompt, "seed": self.seed, **asdict(self.settings)}


class ImageJob(NamedTuple):
    """A request with its number in the list that it belongs to and, if the image is written, its path."""

    number: int
    request: Request
    path: Path | None = None


def check_seed(seed: int) -> None:
    """Raises InputError if a seed is negative or too large."""
    check_range("seed", seed, 0, MAX_SEED)


@contextmanager
def of_section(prefix: str) -> Iterator[None]:
    """Names the section in the message of a value that is refused, such as `samples.` for steps."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}{error}") from error


def requests_for(prompts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings) -> list[Request]:
    """Every prompt with every seed, prompt by prompt."""
    return [Request(prompt, seed, settings) for prompt in prompts for seed in seeds]


def batches(jobs: Sequence[ImageJob], batch_size: int) -> list[list[ImageJob]]:
    """Jobs in their order => batches that one call of `sample` can draw."""
    grouped: list[list[ImageJob]] = []
    for job in jobs:
        if grouped and len(grouped[-1]) < batch_size and _batch_key(grouped[-1][0]) == _batch_key(job):
            grouped[-1].append(job)
        else:
            grouped.append([job])
    return grouped


def _batch_key(job: ImageJob) -> tuple[object, ...]:
    """The settings that the images of one batch share; negative prompts may differ."""
    settings = job.request.settings
    return settings.steps, settings.guidance_scale, settings.sampler
