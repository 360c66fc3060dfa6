"""Checks of concepts, images and prompts before a model is loaded: errors, and warnings of what looks unintended."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from transformers import CLIPTokenizer

from lightning_dreambooth.data.concepts import (
    Concept,
    TrainingImage,
    class_images,
    held_out_images,
    instance_images,
)  # fmt: skip
from lightning_dreambooth.data.images import near_identical, read_image
from lightning_dreambooth.errors import InputError, InputWarning
from lightning_dreambooth.models.tokens import truncated_text

MAX_COMPARED = 200  # more instance images than this are not compared with each other


def check_positive(section: str, values: Mapping[str, int | None]) -> None:
    """Raises InputError if a value of a config section is below 1; None is allowed."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"{section}.{name} is {value}, must be 1 or more")


def check_resolution(resolution_px: int, vae_factor: int) -> None:
    """Raises InputError if the VAE cannot encode images of that side."""
    if resolution_px % vae_factor:
        raise InputError(f"data.resolution is {resolution_px}, must be a multiple of the VAE's factor {vae_factor}")


def check_concepts(concepts: Sequence[Concept], needs_class: bool, resolution_px: int) -> None:
    """Checks each concept and its images, and all concepts together.

    Raises:
        InputError: if they cannot be trained on.

    Warns:
        InputWarning: if they can, but are probably not intended.
    """
    prompts = {concept.class_data_dir: concept.class_prompt for concept in concepts}
    for concept in concepts:
        check_concept(concept, needs_class)
        check_images(concept, needs_class, resolution_px)
        if needs_class and prompts[concept.class_data_dir] != concept.class_prompt:
            raise InputError(f"{concept.class_data_dir} is class_data_dir of two class prompts; give each its own")


def check_concept(concept: Concept, needs_class: bool) -> None:
    """Checks the values of a concept.

    Raises:
        InputError: if it cannot be trained on.

    Warns:
        InputWarning: if the identifier is not in the prompt.
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
        warn(f"the identifier {concept.identifier!r} does not occur in the prompt {concept.instance_prompt!r}")


def check_images(concept: Concept, needs_class: bool, resolution_px: int) -> None:
    """Reads and checks every image of a concept.

    Raises:
        InputError: if one cannot be read, or a folder that must hold images holds none.

    Warns:
        InputWarning: if images are small, nearly the same, or accompanied by other files.
    """
    images, skipped = instance_images(concept)
    if not images:
        raise InputError(f"{concept.instance_data_dir} holds no images; put 3 to 20 of the subject there")
    if skipped:
        warn(f"{concept.instance_data_dir}: skipped {skipped} files that are not images")
    _check_instances([image.path for image in images], resolution_px)
    held_out: list[TrainingImage] = held_out_images(concept)
    if concept.held_out_dir and not held_out:
        raise InputError(f"{concept.held_out_dir} is held_out_dir and holds no images; put some there")
    for image in held_out + (class_images(concept)[0] if needs_class else []):
        read_image(image.path)


def _check_instances(paths: list[Path], resolution_px: int) -> None:
    thumbnails = []
    for path in paths:
        image = read_image(path)
        if min(image.size) < resolution_px:
            warn(f"{path} is {image.width} x {image.height} px, smaller than the resolution {resolution_px}")
        if len(paths) <= MAX_COMPARED:
            thumbnails.append(image.resize((64, 64), Image.Resampling.BOX))
    for i, j in near_identical(thumbnails):
        warn(f"{paths[i]} and {paths[j]} are nearly the same image, which then counts twice")


def check_enough(sets: Sequence[Sequence[object]], minimum: int | None) -> None:
    """Raises InputError if a concept has fewer instance images than data.num_instance_images."""
    if minimum is not None and (fewest := min(map(len, sets))) < minimum:
        raise InputError(f"data.num_instance_images is {minimum}, there are {fewest}; lower it, or add images")


def check_lengths(prompts: Iterable[str], tokenizer: CLIPTokenizer) -> None:
    """Warns of prompts whose end the model does not read."""
    for prompt in dict.fromkeys(prompts):
        if end := truncated_text(tokenizer, prompt):
            warn(
                f"the prompt {prompt!r} is longer than the {tokenizer.model_max_length} tokens that the model reads; "
                f"it does not read {end!r}"
            )


def check_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Warns if images or prompts, as digests by name, differ from those that a state was trained on."""
    if changed := sorted({name for name, _ in before.items() ^ now.items()}):
        warn(f"the state was trained on other {', '.join(changed)}; training continues with the present ones")


def warn(message: str) -> None:
    """Warns the user in one line; the run continues."""
    warnings.warn(message, InputWarning, stacklevel=1)
