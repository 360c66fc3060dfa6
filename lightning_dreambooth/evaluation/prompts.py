"""What is drawn to be measured: prompts to probes, and what that costs. Plain values."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lightning_dreambooth.data.concepts import Concept, TrainingImage, instance_images
from lightning_dreambooth.diffusion.sampling import Request, Sampler
from lightning_dreambooth.errors import InputError

TRAINING_ROW = 4  # UNet evaluations that a training row costs: forward, backward (two) and the update


@dataclass(frozen=True)
class StatedPrompt:
    """A prompt that says itself what the prompt figure compares its images with.

    Args:
        prompt: What is drawn.
        text: What the images should show, in words that the encoder knows.
    """

    prompt: str
    text: str


class Probe(NamedTuple):
    """One image that is drawn to be measured: of the subject, of its class, or of something unrelated."""

    kind: Literal["instance", "class", "unrelated"]
    concept: int
    text: str
    request: Request


class Protocol(NamedTuple):
    """The same prompts and seeds for every step and every model that is compared.

    Attributes:
        prompts: Prompts with an identifier; None takes the instance prompt of each concept.
        unrelated_prompts: Prompts that training should leave alone, besides the class prompts.
        seeds: Seeds of the images of each prompt.
        settings: Negative prompt, steps, guidance scale and sampler.
        batch_size: Images drawn at once.
        base: Hub id or folder of the model that drift is measured from; None takes the one that is trained.
        base_dir: Folder of that model's images, shared between runs.
    """

    prompts: Sequence[str | StatedPrompt] | None
    unrelated_prompts: Sequence[str]
    seeds: Sequence[int]
    settings: tuple[str, int, float, Sampler]
    batch_size: int
    base: str | None = None
    base_dir: str = "runs/.cache/base_images"

    def probes(self, concepts: Sequence[Concept]) -> list[Probe]:
        """Every prompt with every seed.

        A class prompt is drawn once, as such, also if it is among the prompts or several concepts have it.

        Raises:
            InputError: if a prompt shows none of the concepts.
        """
        classes: dict[str, int] = {}
        for number, concept in enumerate(concepts):
            if concept.class_prompt:
                classes.setdefault(concept.class_prompt, number)
        asked: dict[str, tuple[Literal["instance", "class", "unrelated"], int, str]] = {}
        for given in self.prompts or [concept.instance_prompt for concept in concepts]:
            stated = given if isinstance(given, StatedPrompt) else None
            prompt = str(given) if stated is None else stated.prompt
            if prompt not in classes:
                number = concept_of(prompt, concepts)
                text = without(concepts[number].identifier, prompt) if stated is None else stated.text
                asked[prompt] = ("instance", number, text)
        asked |= {prompt: ("class", number, prompt) for prompt, number in classes.items()}
        asked |= {prompt: ("unrelated", 0, prompt) for prompt in self.unrelated_prompts if prompt not in asked}
        return [
            Probe(kind, number, text, Request(prompt, seed, *self.settings))
            for prompt, (kind, number, text) in asked.items()
            for seed in self.seeds
        ]


def instances_with_texts(concepts: Sequence[Concept]) -> list[tuple[Concept, list[tuple[TrainingImage, str]]]]:
    """The instance images of each concept, each with what it shows in words that an encoder knows."""
    sets = [(concept, instance_images(concept)[0]) for concept in concepts]
    return [(concept, [(each, without(concept.identifier, each.prompt)) for each in own]) for concept, own in sets]


def concept_of(prompt: str, concepts: Sequence[Concept]) -> int:
    """Which concept a prompt shows: whose instance prompt it is, else the first whose identifier it holds.

    Raises:
        InputError: if it shows none; a single concept without an identifier is shown by every prompt.
    """
    own = [number for number, concept in enumerate(concepts) if concept.instance_prompt == prompt]
    words = [(number, concept.identifier) for number, concept in enumerate(concepts) if concept.identifier]
    held = own + [number for number, word in words if _word(word).search(prompt)]
    if held or (len(concepts) == 1 and not words):
        return held[0] if held else 0
    raise InputError(
        f"the prompt {prompt!r} holds no concept's identifier; give data.identifier, or move it to "
        "fidelity.unrelated_prompts"
    )


def _word(identifier: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(identifier)}(?!\w)")


def without(identifier: str | None, prompt: str) -> str:
    """The prompt in words an encoder knows: without the identifier or the phrase `in the style of <identifier>`."""
    if not identifier:
        return prompt
    word = _word(identifier).pattern
    prompt = re.sub(rf"[\s,]*\b(?i:in the style of) {word}", "", prompt)
    prompt = re.sub(rf"{word}\s*", "", prompt)
    return " ".join(prompt.split()).strip(" ,")


def unet_evaluations(request: Request) -> int:
    """How often the UNet runs for an image: guidance asks it twice a step."""
    return request.steps * (2 if request.guidance_scale > 1 else 1)
