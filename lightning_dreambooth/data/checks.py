"""Checks of concepts and prompts before a model is loaded: errors, and warnings of what looks unintended."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from transformers import CLIPTokenizer

from lightning_dreambooth.data.concepts import FOLDERS, Concept
from lightning_dreambooth.data.images import MAX_SIDE
from lightning_dreambooth.diffusion.requests import MAX_IMAGES, check_prompt
from lightning_dreambooth.errors import InputError, InputWarning
from lightning_dreambooth.models.tokens import truncated_text

MAX_SHOWN = 300  # letters of a prompt in a message
MAX_WEIGHT = 1000  # a round holds as many samples as the sum of weights


def check_positive(section: str, values: Mapping[str, int | None], at_most: int | None = None) -> None:
    """Raises InputError if a value of a config section is below 1 or above `at_most`; None is allowed."""
    for name, value in values.items():
        if value is not None and value < 1 and at_most is None:
            raise InputError(f"{section}.{name} is {value}, must be 1 or more")
        if value is not None and at_most is not None and not 1 <= value <= at_most:
            raise InputError(f"{section}.{name} is {value}, must lie in 1 ... {at_most:,}")


def check_resolution(resolution_px: int, vae_factor: int) -> None:
    """Raises InputError if the VAE cannot encode images of that side."""
    if resolution_px % vae_factor or resolution_px > MAX_SIDE:
        raise InputError(
            f"data.resolution is {resolution_px}, must be a multiple of the VAE's factor {vae_factor}, and at most "
            f"{MAX_SIDE:,}"
        )


def check_concepts(concepts: Sequence[Concept], needs_class: bool) -> None:
    """Checks the values of each concept, and all concepts together.

    Raises:
        InputError: if they cannot be trained on.

    Warns:
        InputWarning: if an identifier is not in its prompt.
    """
    for concept in concepts:
        check_concept(concept, needs_class)
    check_folders(concepts, FOLDERS if needs_class else [key for key in FOLDERS if key != "class_data_dir"])
    prompts: dict[Path, str | None] = {}
    for concept in concepts if needs_class else []:
        if prompts.setdefault(_resolved(concept.class_data_dir), concept.class_prompt) != concept.class_prompt:
            raise InputError(f"{concept.class_data_dir} is class_data_dir of two class prompts; give each its own")


def check_concept(concept: Concept, needs_class: bool) -> None:
    """Checks the values of a concept.

    Raises:
        InputError: if it cannot be trained on.

    Warns:
        InputWarning: if the identifier is not in the prompt.
    """
    for key in ("instance_prompt", "class_prompt", "identifier"):
        check_prompt(getattr(concept, key) or "", key)
    if not concept.instance_prompt.strip():
        raise InputError(
            f"instance_prompt of {concept.instance_data_dir} is empty; give the words that it is called by"
        )
    for name, value, most in (
        ("weight", concept.weight, MAX_WEIGHT), ("num_class_images", concept.num_class_images, MAX_IMAGES),
    ):  # fmt: skip
        if value is not None and not 1 <= value <= most:
            raise InputError(
                f"{name} of the concept {concept.instance_prompt!r} is {value}, must lie in 1 ... {most:,}"
            )
    if needs_class and not (concept.class_prompt and concept.class_data_dir):
        raise InputError(
            f"concept {concept.instance_prompt!r} has no class_prompt or class_data_dir, which the prior loss needs; "
            "give both or set model.prior_weight to 0"
        )
    if concept.identifier and concept.identifier not in concept.instance_prompt:
        warn(f"the identifier {concept.identifier!r} does not occur in the prompt {concept.instance_prompt!r}")


def check_taught(concepts: Sequence[Concept]) -> None:
    """Checks what a teacher needs of each concept.

    Raises:
        InputError: if one has no class prompt.

    Warns:
        InputWarning: if one has class images, which are not read.
    """
    for concept in concepts:
        if not (concept.class_prompt or "").strip():
            raise InputError(
                f"concept {concept.instance_prompt!r} has no class_prompt, which model.prior: teacher needs; "
                "give it or set model.prior_weight to 0"
            )
    unread = [concept.class_data_dir for concept in concepts if concept.class_data_dir]
    warn_of_kind([f"class_data_dir {folder} is not read: model.prior is teacher" for folder in unread])


def check_folders(concepts: Sequence[Concept], keys: Sequence[str]) -> None:
    """Raises InputError if a folder, by whatever path, is named by two of the keys."""
    named: dict[Path, str] = {}
    for folder, key in ((getattr(concept, key), key) for concept in concepts for key in keys):
        if folder and (other := named.setdefault(_resolved(folder), key)) != key:
            raise InputError(f"{folder} is {key} and {other}; give each its own folder")


def _resolved(folder: str | None) -> Path:
    return Path(str(folder)).resolve()


def check_enough(sets: Sequence[Sequence[object]], minimum: int | None) -> None:
    """Raises InputError if a concept has fewer instance images than data.num_instance_images."""
    if minimum is not None and (fewest := min(map(len, sets))) < minimum:
        raise InputError(f"data.num_instance_images is {minimum}, there are {fewest}; lower it, or add images")


def check_lengths(prompts: Iterable[str], tokenizer: CLIPTokenizer) -> None:
    """Warns of prompts whose end the model does not read.

    Raises:
        InputError: if a prompt is far too long to be one.
    """
    too_long = []
    for prompt in dict.fromkeys(prompts):
        check_prompt(prompt, "a prompt")
        if end := truncated_text(tokenizer, prompt):
            too_long.append(
                f"the prompt {prompt[:MAX_SHOWN]!r} is longer than the {tokenizer.model_max_length} tokens that the "
                f"model reads; it does not read {end[:MAX_SHOWN]!r}"
            )
    warn_of_kind(too_long)


def check_same(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Warns if images or prompts, as digests by name, differ from those that a state was trained on."""
    if changed := sorted({name for name, _ in before.items() ^ now.items()}):
        warn(f"the state was trained on other {', '.join(changed)}; training continues with the present ones")


def warn(message: str) -> None:
    """Warns the user in one line; the run continues."""
    warnings.warn(message, InputWarning, stacklevel=1)


def warn_of_kind(sentences: Sequence[str]) -> None:
    """Warns of everything of one kind in one line: the first, and how many more there are."""
    if sentences:
        warn(sentences[0] + (f" (and {len(sentences) - 1} more)" if len(sentences) > 1 else ""))
