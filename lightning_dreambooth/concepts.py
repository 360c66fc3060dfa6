"""What is learned: concepts from flags or from a `concepts_list.json`, checked before anything is loaded. No torch."""

import json
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

from PIL import Image

from lightning_dreambooth.errors import InputError, InputWarning
from lightning_dreambooth.pictures import list_pictures, near_identical, read_caption, read_picture

HANDFUL = 200  # more instance pictures than this are not compared with each other


@dataclass(frozen=True)
class Concept:
    """One subject or style, with the keys of the reference's `concepts_list.json`.

    Args:
        instance_prompt: Prompt of the instance pictures that have no caption file of their own.
        instance_data_dir: Folder of the instance pictures.
        class_prompt: Prompt of the class pictures; needed while the prior is on.
        class_data_dir: Folder of the class pictures, filled when it holds too few; needed while the prior is on.
        identifier: The rare word that stands for the subject or style.
        num_class_images: How many class pictures this concept trains on, if other than the rest.
        weight: How many of every `sum of weights` samples come from this concept.
    """

    instance_prompt: str
    instance_data_dir: str
    class_prompt: str | None = None
    class_data_dir: str | None = None
    identifier: str | None = None
    num_class_images: int | None = None
    weight: int = 1


@dataclass(frozen=True)
class Picture:
    """A training picture and the prompt it is trained with."""

    path: Path
    prompt: str


def read_concepts(path: str) -> list[Concept]:
    """Reads a `concepts_list.json`: a list of objects with the keys of `Concept`, unknown keys refused by name."""
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
            raise InputError(f"{where}: {key} is {value!r}, which is no {getattr(known[key], '__name__', known[key])}")
    return Concept(**entry)  # type: ignore[arg-type]


def check(concept: Concept, needs_class: bool, resolution_px: int) -> None:
    """Looks at a concept and at each of its instance pictures.

    Raises:
        InputError: if it cannot be trained on.

    Warns:
        InputWarning: if it can, but is hardly meant so.
    """
    for name, value in {"weight": concept.weight, "num_class_images": concept.num_class_images}.items():
        if value is not None and value < 1:
            raise InputError(f"{name} of the concept {concept.instance_prompt!r} is {value}, must be 1 or more")
    if needs_class and not (concept.class_prompt and concept.class_data_dir):
        raise InputError(
            f"concept {concept.instance_prompt!r} has no class_prompt or class_data_dir, which the prior loss needs; "
            "give both or set model.prior_weight to 0"
        )
    if needs_class and Path(str(concept.class_data_dir)).resolve() == Path(concept.instance_data_dir).resolve():
        raise InputError(f"{concept.class_data_dir} is class_data_dir and instance_data_dir; give each its own folder")
    if concept.identifier and concept.identifier not in concept.instance_prompt:
        _warn(f"the identifier {concept.identifier!r} does not occur in the prompt {concept.instance_prompt!r}")
    pictures, skipped = instance_pictures(concept)
    if not pictures:
        raise InputError(f"{concept.instance_data_dir} holds no pictures; put 3 to 20 of the subject there")
    if skipped:
        _warn(f"{concept.instance_data_dir}: skipped {skipped} files that are no pictures")
    _look_at([picture.path for picture in pictures], resolution_px)
    if needs_class:
        for picture in class_pictures(concept)[0]:
            read_picture(picture.path)


def _look_at(paths: list[Path], resolution_px: int) -> None:
    seen = []
    for path in paths:
        picture = read_picture(path)
        if min(picture.size) < resolution_px:
            _warn(f"{path} is {picture.width} x {picture.height} px, smaller than the resolution {resolution_px}")
        if len(paths) <= HANDFUL:
            seen.append(picture.resize((64, 64), Image.Resampling.BOX))
    for i, j in near_identical(seen):
        _warn(f"{paths[i]} and {paths[j]} are nearly the same picture, which counts double")


def _warn(message: str) -> None:
    warnings.warn(message, InputWarning, stacklevel=1)


def instance_pictures(concept: Concept) -> tuple[list[Picture], int]:
    """The instance pictures with their prompts, and the number of files that are no pictures."""
    return _pictures(concept.instance_data_dir, concept.instance_prompt)


def class_pictures(concept: Concept) -> tuple[list[Picture], int]:
    """The class pictures with their prompts, none before the first run, and the number of other files."""
    if not Path(str(concept.class_data_dir)).is_dir():
        return [], 0
    return _pictures(str(concept.class_data_dir), str(concept.class_prompt))


def _pictures(folder: str, prompt: str) -> tuple[list[Picture], int]:
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is not a folder; name one that holds pictures")
    paths, skipped = list_pictures(Path(folder))
    return [Picture(path, read_caption(path, prompt)) for path in paths], skipped
