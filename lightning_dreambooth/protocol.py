"""What is drawn to be measured: prompts to probes, and what that costs. Plain values."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lightning_dreambooth.concepts import Concept
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.sampling import Request, Sampler

TRAINING_ROW = 4  # UNet evaluations that a training row costs: forward, backward (two) and the update


@dataclass(frozen=True)
class StatedPrompt:
    """A prompt that says itself what the prompt figure compares its pictures with.

    Args:
        prompt: What is drawn.
        text: What the pictures should show, in words that the encoder knows.
    """

    prompt: str
    text: str


class Probe(NamedTuple):
    """One picture that is drawn to be measured: of the subject, of its class, or of something unrelated."""

    kind: Literal["instance", "class", "unrelated"]
    concept: int
    text: str
    request: Request


class Protocol(NamedTuple):
    """The same prompts and seeds for every step and every model that is compared.

    Attributes:
        prompts: Prompts with an identifier; None takes the instance prompt of each concept.
        unrelated_prompts: Prompts that training should leave alone, besides the class prompts.
        seeds: Seeds of the pictures of each prompt.
        settings: Negative prompt, steps, guidance scale and sampler.
        batch_size: Pictures drawn at once.
        base: Hub id or folder of the model that drift is measured from; None takes the one that is trained.
        base_dir: Folder of that model's pictures, shared between runs.
    """

    prompts: Sequence[str | StatedPrompt] | None
    unrelated_prompts: Sequence[str]
    seeds: Sequence[int]
    settings: tuple[str, int, float, Sampler]
    batch_size: int
    base: str | None = None
    base_dir: str = "checkpoints/base_images"

    def probes(self, concepts: Sequence[Concept]) -> list[Probe]:
        """Every prompt with every seed.

        Raises:
            InputError: if a prompt shows none of the concepts.
        """
        asked: list[tuple[Literal["instance", "class", "unrelated"], int, str, str]] = []
        for given in self.prompts or [concept.instance_prompt for concept in concepts]:
            prompt = given if isinstance(given, str) else given.prompt
            number = concept_of(prompt, concepts)
            text = without(concepts[number].identifier, prompt) if isinstance(given, str) else given.text
            asked.append(("instance", number, prompt, text))
        for number, concept in enumerate(concepts):
            if concept.class_prompt and concept.class_prompt not in [prompt for _, _, prompt, _ in asked]:
                asked.append(("class", number, concept.class_prompt, concept.class_prompt))
        asked += [("unrelated", 0, prompt, prompt) for prompt in self.unrelated_prompts]
        return [
            Probe(kind, number, text, Request(prompt, seed, *self.settings))
            for kind, number, prompt, text in asked
            for seed in self.seeds
        ]


def concept_of(prompt: str, concepts: Sequence[Concept]) -> int:
    """Which concept a prompt shows: the first whose identifier it holds, or the only one there is.

    Raises:
        InputError: if it shows none.
    """
    for number, concept in enumerate(concepts):
        if prompt == concept.instance_prompt or (concept.identifier and _word(concept.identifier).search(prompt)):
            return number
    if len(concepts) == 1:
        return 0
    raise InputError(f"the prompt {prompt!r} holds no concept's identifier; give data.identifier, or reword it")


def _word(identifier: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(identifier)}(?!\w)")


def without(identifier: str | None, prompt: str) -> str:
    """The prompt in words an encoder knows: without the identifier or the phrase `in the style of <identifier>`."""
    if not identifier:
        return prompt
    word = _word(identifier).pattern
    prompt = re.sub(rf"[\s,]*\bin the style of {word}", "", prompt)
    prompt = re.sub(rf"{word}\s*", "", prompt)
    return " ".join(prompt.split()).strip(" ,")


def unet_evaluations(request: Request) -> int:
    """How often the UNet runs for a picture: guidance asks it twice a step."""
    return request.steps * (2 if request.guidance_scale > 1 else 1)
