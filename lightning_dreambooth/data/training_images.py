"""The images that are trained on, by concept and bucket, and digests of them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning_dreambooth.data.buckets import by_bucket, class_concepts
from lightning_dreambooth.data.concepts import Concept, TrainingImage, class_images, instance_images
from lightning_dreambooth.files import sha256
from lightning_dreambooth.sizes import Size, as_text

HALVES = ("instance", "class")  # the halves of a batch, in this order


class ConceptImages(NamedTuple):
    """The images of one concept.

    Attributes:
        instances: The instance images.
        classes: The class images; empty while none are trained on.
        weight: Number of samples of the concept in every round.
        taught_prompt: The class prompt, if a teacher is trained with; else None.
        number: Which concept it is, from 0: one with buckets is there several times.
        size: Of these images while they are trained on, if they are not squares of the resolution.
    """

    instances: list[TrainingImage]
    classes: list[TrainingImage]
    weight: int = 1
    taught_prompt: str | None = None
    number: int = 0
    size: Size | None = None

    @property
    def class_rows(self) -> list[TrainingImage]:
        """What class rows show: class images or, with a teacher, the instance images with the class prompt."""
        if self.taught_prompt is None:
            return self.classes
        return [TrainingImage(image.path, self.taught_prompt) for image in self.instances]


def concept_images(
    concepts: Sequence[Concept], num_class_images: int, num_instance_images: int | None = None, taught: bool = False
) -> list[ConceptImages]:
    """The training images of each concept.

    Args:
        concepts: The concepts.
        num_class_images: Class images of each concept that does not set its own number; 0 leaves out all class images.
        num_instance_images: Instance images of each concept, the first by name; None takes all.
        taught: Whether a teacher is trained with.
    """
    sets = []
    for number, concept in enumerate(concepts):
        count = concept.num_class_images or num_class_images
        classes = class_images(concept)[:count] if num_class_images else []
        instances, prompt = instance_images(concept)[:num_instance_images], concept.class_prompt if taught else None
        sets.append(ConceptImages(instances, classes, concept.weight, prompt, number))
    return sets


def bucketed(
    concepts: Sequence[Concept], sets: Sequence[ConceptImages], sizes: Mapping[Path, Size], num_class_images: int
) -> list[ConceptImages]:
    """Splits the images of each concept by their buckets, with class images of the same size.

    Args:
        concepts: The concepts.
        sets: Their images.
        sizes: The bucket of each instance image.
        num_class_images: Class images of each concept that does not set its own number; 0: none are trained on.
    """
    parts = []
    for concept, images in zip(concepts, sets, strict=True):
        count = concept.num_class_images or num_class_images
        by_size = class_concepts(concept, [sizes[image.path] for image in images.instances], count)
        for size, instances in by_bucket(images.instances, sizes).items():
            classes = class_images(by_size[size])[: by_size[size].num_class_images] if num_class_images else []
            parts.append(images._replace(instances=instances, classes=classes, size=size))
    return parts


def sizes_of(sets: Sequence[ConceptImages]) -> dict[Path, Size]:
    """The size of each image that is not trained on as a square of the resolution."""
    return {image.path: images.size for images in sets if images.size
            for image in images.instances + images.class_rows}  # fmt: skip


def data_digests(concepts: Sequence[ConceptImages], masked: bool) -> dict[str, str]:
    """SHA-256 of image contents, prompts and, for a masked loss, masks; 16 hex digits each, by half and concept."""
    digests = {}
    for concept in concepts:
        name_of_set = f"concept {concept.number + 1}" + (f" in {as_text(concept.size)}" if concept.size else "")
        for half, images in zip(HALVES, (concept.instances, concept.class_rows), strict=True):
            contents = [sha256(image.path) for image in images]
            prompts = [image.prompt for image in images]
            masks = {"masks": [sha256(image.mask) for image in images if image.mask]} if masked else {}
            for name, texts in {"images": contents, "prompts": prompts, **masks}.items():
                digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
                digests[f"{half} {name} of {name_of_set}"] = digest[:16]
    return digests
