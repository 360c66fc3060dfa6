"""Evaluation prompts: prompts and seeds of the images to measure, and the text that each is compared with."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lightning_dreambooth.data.concepts import Concept, TrainingImage, instance_images
from lightning_dreambooth.diffusion.requests import Request, SamplingSettings
from lightning_dreambooth.errors import InputError

Kind = Literal["instance", "class", "unrelated"]


@dataclass(frozen=True)
class StatedPrompt:
    """A prompt with the text that its images are compared with.

    Args:
        prompt: The prompt that is drawn.
        text: The text that the images should show, without the identifier.
    """

    prompt: str
    text: str


class Probe(NamedTuple):
    """One image to measure: of the subject, of its class, or of something unrelated."""

    kind: Kind
    concept: int
    text: str
    request: Request


class EvaluationPrompts(NamedTuple):
    """The same prompts and seeds for every step and every model that is compared.

    Attributes:
        prompts: Prompts with an identifier; None takes the instance prompt of each concept.
        unrelated_prompts: Prompts that training should not change, besides the class prompts.
        seeds: Seeds of the images of each prompt.
        settings: How images are sampled.
    """

    prompts: Sequence[str | StatedPrompt] | None
    unrelated_prompts: Sequence[str]
    seeds: Sequence[int]
    settings: SamplingSettings

    def probes(self, concepts: Sequence[Concept]) -> list[Probe]:
        """Every prompt with every seed.

        A class prompt is drawn once, as such, even if it is among the prompts or several concepts have it.

        Raises:
            InputError: if a prompt shows none of the concepts.
        """
        classes: dict[str, int] = {}
        for number, concept in enumerate(concepts):
            if concept.class_prompt:
                classes.setdefault(concept.class_prompt, number)
        kinds: dict[str, tuple[Kind, int, str]] = {}
        for entry in self.prompts or [concept.instance_prompt for concept in concepts]:
            prompt = entry.prompt if isinstance(entry, StatedPrompt) else entry
            if prompt not in classes:
                number = shown_concept(prompt, concepts)
                identifier = concepts[number].identifier
                text = entry.text if isinstance(entry, StatedPrompt) else strip_identifier(prompt, identifier)
                kinds[prompt] = ("instance", number, text)
        kinds |= {prompt: ("class", number, prompt) for prompt, number in classes.items()}
        kinds |= {prompt: ("unrelated", 0, prompt) for prompt in self.unrelated_prompts if prompt not in kinds}
        return [
            Probe(kind, number, text, Request(prompt, seed, self.settings))
            for prompt, (kind, number, text) in kinds.items()
            for seed in self.seeds
        ]


def instances_with_texts(concepts: Sequence[Concept]) -> list[tuple[Concept, list[tuple[TrainingImage, str]]]]:
    """The instance images of each concept, each with its prompt without the identifier."""
    return [
        (
            concept,
            [(image, strip_identifier(image.prompt, concept.identifier)) for image in instance_images(concept)],
        )
        for concept in concepts
    ]


def shown_concept(prompt: str, concepts: Sequence[Concept]) -> int:
    """Index of the concept that a prompt shows: by its instance prompt, else the first by its identifier.

    Every prompt shows a single concept without an identifier.

    Raises:
        InputError: if the prompt shows none of the concepts.
    """
    shown = [number for number, concept in enumerate(concepts) if concept.instance_prompt == prompt]
    identifiers = [(number, concept.identifier) for number, concept in enumerate(concepts) if concept.identifier]
    shown += [number for number, identifier in identifiers if _word(identifier).search(prompt)]
    if shown or (len(concepts) == 1 and not identifiers):
        return shown[0] if shown else 0
    raise InputError(
        f"the prompt {prompt!r} holds no concept's identifier; give data.identifier, or move it to "
        "fidelity.unrelated_prompts"
    )


def _word(identifier: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(identifier)}(?!\w)")


def plain_text(concept: Concept) -> str:
    """The text of the subject alone: the instance prompt without the identifier."""
    return strip_identifier(concept.instance_prompt, concept.identifier)


def strip_identifier(prompt: str, identifier: str | None) -> str:
    """The prompt without the identifier, which encoders do not know, or without `in the style of <identifier>`."""
    if not identifier:
        return prompt
    word = _word(identifier).pattern
    prompt = re.sub(rf"[\s,]*\b(?i:in the style of) {word}", "", prompt)
    prompt = re.sub(rf"{word}\s*", "", prompt)
    return " ".join(prompt.split()).strip(" ,")
