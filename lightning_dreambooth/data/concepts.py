"""Concepts from options or from a `concepts_list.json`, and their images with prompts. No torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from lightning_dreambooth.data.folders import read_folder
from lightning_dreambooth.diffusion.requests import check_prompt
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import expand, read_text

FOLDERS = ("instance_data_dir", "class_data_dir", "held_out_dir")  # keys of a concept


@dataclass(frozen=True)
class Concept:
    """One subject or style, with the keys of the reference's `concepts_list.json`.

    Args:
        instance_prompt: Prompt of the instance images that have no caption of their own.
        instance_data_dir: Folder of the instance images.
        class_prompt: Prompt of the class rows; needed while the prior is on.
        class_data_dir: Folder of the class images, filled when it holds too few; needed if the prior is of images.
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
    """A training image, the prompt it is trained with, and the mask beside it, if there is one."""

    path: Path
    prompt: str
    mask: Path | None = None


def given_concepts(concepts_list: str | None, flags: Mapping[str, str | None]) -> list[Concept]:
    """The concepts of a JSON file, or the one that options give; `~` and `$VAR` in their folders are expanded.

    Raises:
        InputError: if both are given, or neither.
    """
    if concepts_list is not None:
        if any(flags.values()):
            raise InputError("data.concepts_list and a concept by options are both given; give one of them")
        return read_concepts(expand(concepts_list))
    if not flags["instance_prompt"] or not flags["instance_data_dir"]:
        raise InputError("nothing to learn: give data.instance_data_dir and instance_prompt, or data.concepts_list")
    return [_build(flags)]


def read_concepts(path: str) -> list[Concept]:
    """Reads a `concepts_list.json`: a list of objects with the keys of `Concept`.

    Raises:
        InputError: if it cannot be read, or a key is unknown, missing, empty or of the wrong type.
    """
    try:
        entries = json.loads(read_text(Path(path)))
    except (ValueError, RecursionError) as error:
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
    if empty := [key for key in ("instance_prompt", "instance_data_dir") if not str(entry[key]).strip()]:
        raise InputError(f"{where}: {' and '.join(empty)} empty")
    return _build(entry)


def _build(entry: Mapping[str, object]) -> Concept:
    paths = {key: expand(str(entry[key])) for key in FOLDERS if entry.get(key)}
    return Concept(**{**entry, **paths})  # type: ignore[arg-type]


def instance_images(concept: Concept) -> list[TrainingImage]:
    """The instance images with their prompts."""
    return _images(concept.instance_data_dir, concept.instance_prompt)


def class_images(concept: Concept) -> list[TrainingImage]:
    """The class images with their prompts; none before the first run."""
    if not Path(str(concept.class_data_dir)).is_dir():
        return []
    return _images(str(concept.class_data_dir), str(concept.class_prompt))


def held_out_images(concept: Concept) -> list[TrainingImage]:
    """The instance images that are only measured; empty without a folder of them."""
    return _images(concept.held_out_dir, concept.instance_prompt) if concept.held_out_dir else []


def _images(name: str, prompt: str) -> list[TrainingImage]:
    folder = read_folder(Path(name))
    images = [TrainingImage(path, folder.caption(path) or prompt, folder.mask(path)) for path in folder.images]
    for image in images:
        check_prompt(image.prompt, f"the prompt of {image.path}")
    return images
