"""Aspect-ratio buckets: each image is trained on in nearly its own shape, at the area of the resolution.

NovelAI (2022), https://github.com/NovelAI/novelai-aspect-ratio-bucketing, trains in the same way.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil, sqrt
from pathlib import Path

from lightning_dreambooth.data.concepts import Concept, TrainingImage
from lightning_dreambooth.data.images import read_image
from lightning_dreambooth.sizes import Size, as_text

STEPS = 16  # sides of buckets are multiples of a sixteenth of the resolution, so that images share buckets


def bucket(size: tuple[int, int], resolution_px: int, factor: int) -> Size:
    """Width and height of an image => those that it is trained on in; up to three to one, little is cut off.

    Args:
        size: Of the image, in px.
        resolution_px: Side of the square with the same area.
        factor: Of the VAE: both sides are multiples of it.
    """
    step = max(factor, resolution_px // STEPS // factor * factor)
    across, down = size
    wanted = (resolution_px * sqrt(across / down), resolution_px * sqrt(down / across))
    width, height = (max(step, round(side / step) * step) for side in wanted)
    return width, height


def buckets_of(images: Iterable[TrainingImage], resolution_px: int, factor: int) -> dict[Path, Size]:
    """The bucket of each image."""
    return {image.path: bucket(read_image(image.path).size, resolution_px, factor) for image in images}


def class_concepts(concept: Concept, sizes: Sequence[Size], count: int) -> dict[Size, Concept]:
    """A concept with these sizes of its instance images => the same with the class images of each size.

    They lie in a folder for each size, and are as many in proportion.

    Args:
        concept: The concept.
        sizes: Of its instance images.
        count: Its class images of all sizes together; each size has at least one.
    """
    return {
        size: replace(
            concept, class_data_dir=str(Path(str(concept.class_data_dir)) / as_text(size)),
            num_class_images=ceil(count * number / len(sizes)),
        )
        for size, number in sorted(Counter(sizes).items())
    }  # fmt: skip


def by_bucket(images: Sequence[TrainingImage], sizes: Mapping[Path, Size]) -> dict[Size, list[TrainingImage]]:
    """Images by their bucket."""
    return {size: [image for image in images if sizes[image.path] == size]
            for size in sorted({sizes[image.path] for image in images})}  # fmt: skip
