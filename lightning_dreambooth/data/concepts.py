"""Concepts from options or from a `concepts_list.json`, and their images with prompts. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from lightning_dreambooth.data.images import list_images, read_caption
from lightning_dreambooth.errors import InputError


@dataclass(frozen=True)
class Concept:
    """One subject or style, with the keys of the reference's `concepts_list.json`.

    Args:
        instance_prompt: Prompt of the instance images that have no caption file of their own.
        instance_data_dir: Folder of the instance images.
        class_prompt: Prompt of the class images; needed while the prior is on.
        class_data_dir: Folder of the class images, filled when it holds too few; needed while the prior is on.
        identifier: The rare word that stands for the subject or style.
        num_class_images: Number of class images of this concept, if not that of the others.
        weight: Number of samples from this concept in every round of `sum of weights` samples.
        held_out_dir: Folder of further instance images, never trained on; their loss tells learning from copying.
    """

    instance_prompt: str
    instance_data_dir: str
    class_prompt: str | None = None
    class_data_dir: str | None = None
    identifier: str | None = None
    num_class_images: int | None = None
    weight: int = 1
    held_out_dir: str | None = None


@dataclass(frozen=True)
class TrainingImage:
    """A training image and the prompt it is trained with."""

    path: Path
    prompt: str


def given_concepts(concepts_list: str | None, flags: Mapping[str, str | None]) -> list[Concept]:
    """The concepts of a JSON file, or the one that options give.

    Raises:
        InputError: if both are given, or neither.
    """
    if concepts_list is not None:
        if any(flags.values()):
            raise InputError("data.concepts_list and a concept by options are both given; give one of them")
        return read_concepts(concepts_list)
    if not flags["instance_prompt"] or not flags["instance_data_dir"]:
        raise InputError("nothing to learn: give data.instance_data_dir and instance_prompt, or data.concepts_list")
    return [Concept(**flags)]  # type: ignore[arg-type]


def read_concepts(path: str) -> list[Concept]:
    """Reads a `concepts_list.json`: a list of objects with the keys of `Concept`.

    Raises:
        InputError: if it cannot be read, or a key is unknown, missing or of the wrong type.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"concepts_list {path} cannot be read as JSON: {error}") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"concepts_list {path} must be a list of one or more objects, one for each concept")
    return [_concept(entry, f"{path}, concept {number}") for number, entry in enumerate(entries, start=1)]


def _concept(entry: dict[str, object], where: str) -> Concept:
    known = {field.name: field.type for field in fields(Concept)}
    if unknown := sorted(set(entry) - set(known)):
        raise InputError(f"{where}: unknown key {', '.join(map(repr, unknown))}; known are {', '.join(known)}")
    if missing := [key for key in ("instance_prompt", "instance_data_dir") if key not in entry]:
        raise InputError(f"{where}: {' and '.join(missing)} missing")
    for key, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, known[key]):  # type: ignore[arg-type]
            raise InputError(f"{where}: {key} is {value!r}, must be {getattr(known[key], '__name__', known[key])}")
    return Concept(**entry)  # type: ignore[arg-type]


def instance_images(concept: Concept) -> tuple[list[TrainingImage], int]:
    """The instance images with their prompts, and the number of other files."""
    return _images(concept.instance_data_dir, concept.instance_prompt)


def class_images(concept: Concept) -> tuple[list[TrainingImage], int]:
    """The class images with their prompts (none before the first run), and the number of other files."""
    if not Path(str(concept.class_data_dir)).is_dir():
        return [], 0
    return _images(str(concept.class_data_dir), str(concept.class_prompt))


def held_out_images(concept: Concept) -> list[TrainingImage]:
    """The instance images that are only measured; empty without a folder of them."""
    return _images(concept.held_out_dir, concept.instance_prompt)[0] if concept.held_out_dir else []


def _images(folder: str, prompt: str) -> tuple[list[TrainingImage], int]:
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder; name one that holds images")
    paths, skipped = list_images(Path(folder))
    return [TrainingImage(path, read_caption(path, prompt)) for path in paths], skipped
