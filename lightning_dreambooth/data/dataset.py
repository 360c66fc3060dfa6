"""Which images make which sample: pairs of instance and class rows as a pure function of the sample index."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_dreambooth import randomness
from lightning_dreambooth.data.concepts import Concept, TrainingImage, class_images_of, instance_images
from lightning_dreambooth.data.images import View
from lightning_dreambooth.data.latents import LatentCache, load_pixels
from lightning_dreambooth.files import sha256

RANDOM_CROPS = 8  # places a random crop chooses from, so that cached and live images are the same


class ConceptImages(NamedTuple):
    """The images of one concept; `classes` is empty while the prior is off."""

    instances: list[TrainingImage]
    classes: list[TrainingImage]
    weight: int = 1


def concept_images(
    concepts: Sequence[Concept], num_class_images: int, num_instance_images: int | None = None
) -> list[ConceptImages]:
    """The images of each concept, with so many of its class unless it names a number itself; 0 is without a class.

    Of the instance images the first so many, by name; None takes all.
    """
    sets = []
    for concept in concepts:
        wanted = concept.num_class_images or num_class_images
        classes = class_images_of(concept)[0][:wanted] if num_class_images else []
        sets.append(ConceptImages(instance_images(concept)[0][:num_instance_images], classes, concept.weight))
    return sets


def data_digests(concepts: Sequence[ConceptImages]) -> dict[str, str]:
    """What is learned, by name: SHA-256 of the images' contents and of their prompts, 16 hex digits each."""
    found = {}
    for number, concept in enumerate(concepts, start=1):
        for half, images in {"instance": concept.instances, "class": concept.classes}.items():
            contents, prompts = [sha256(image.path) for image in images], [image.prompt for image in images]
            for name, words in {"images": contents, "prompts": prompts}.items():
                digest = hashlib.sha256("\0".join(words).encode()).hexdigest()
                found[f"{half} {name} of concept {number}"] = digest[:16]
    return found


class Row(NamedTuple):
    """One image as the UNet learns it: moments or bytes, embeddings or token ids."""

    image: Shaped[Tensor, "c h w"]
    text: Shaped[Tensor, "tokens ..."]


class Sample(NamedTuple):
    """An instance row and, while the prior is on, a class row of the same concept."""

    number: int
    rows: tuple[Row, ...]


class Batch(NamedTuple):
    """B samples as `rows`: B instance rows, then B class rows if there are any.

    `numbers` are the indices of the B samples. `images` are moments [rows, 2c, h, w] if latents are cached, else
    bytes [rows, 3, height, width]; `texts` are embeddings [rows, tokens, width] if the text encoder is frozen, else
    token ids [rows, tokens].
    """

    numbers: list[int]
    images: Shaped[Tensor, "rows c h w"]
    texts: Shaped[Tensor, "rows tokens ..."]


def views_of(crop: Literal["center", "random"], flip: bool, seed: int) -> list[View]:
    """The ways in which each image is seen."""
    if crop == "center":
        spots: list[tuple[float, ...]] = [(0.5, 0.5)]
    else:
        spots = [randomness.uniform(seed, "crop", j, 2) for j in range(RANDOM_CROPS)]
    return [View(mirrored, *spot) for spot in spots for mirrored in ([False, True] if flip else [False])]


def concept_cycle(weights: Sequence[int]) -> list[tuple[int, int]]:
    """One round of (concept, visit within the round): concept c comes weights[c] times, evenly spread."""
    places = [((j + 0.5) / weight, c, j) for c, weight in enumerate(weights) for j in range(weight)]
    return [(c, j) for _, c, j in sorted(places)]


class PairDataset(Dataset[Sample]):
    """Maps a sample index to its rows; every instance image of a concept is seen equally often.

    Args:
        concepts: The images of each concept.
        texts: Token ids or embeddings of every prompt and of the empty one.
        views: How images are seen; each row draws one.
        resolution_px: Side of the squares that are trained on.
        caption_dropout: Probability in [0, 1] that a row is trained with the empty prompt (Ho & Salimans 2022).
        seed: Seed of order, views and dropout.
        cache: Where encoded images are; None reads the files instead.
    """

    def __init__(
        self,
        concepts: Sequence[ConceptImages],
        texts: Mapping[str, Tensor],
        views: Sequence[View],
        resolution_px: int,
        caption_dropout: float,
        seed: int,
        cache: LatentCache | None,
    ) -> None:
        self.concepts = concepts
        self.texts = texts
        self.views = views
        self.resolution_px = resolution_px
        self.caption_dropout = caption_dropout
        self.seed = seed
        self.cache = cache
        self.cycle = concept_cycle([concept.weight for concept in concepts])

    def images(self, index: int) -> tuple[TrainingImage, ...]:
        """The instance image of a sample and, while the prior is on, the class image it is paired with."""
        turn, slot = divmod(index, len(self.cycle))
        c, j = self.cycle[slot]
        instances, classes, weight = self.concepts[c]
        seen = turn * weight + j
        pair = [instances[randomness.visit(self.seed, f"instance {c}", seen, len(instances))]]
        if classes:
            pair.append(classes[randomness.visit(self.seed, f"class {c}", seen, len(classes))])
        return tuple(pair)

    def __getitem__(self, index: int) -> Sample:
        rows = zip(("instance", "class"), self.images(index), strict=False)
        return Sample(index, tuple(self._row(index, half, image) for half, image in rows))

    def _row(self, index: int, half: str, image: TrainingImage) -> Row:
        view = self.views[int(randomness.integers(self.seed, f"view {half}", [index], len(self.views)))]
        dropped = randomness.chance(self.seed, f"caption dropout {half}", index, self.caption_dropout)
        text = self.texts["" if dropped else image.prompt]
        if self.cache is None:
            return Row(load_pixels(image.path, view, self.resolution_px), text)
        return Row(self.cache.get(image.path, view), text)

    def collate(self, samples: list[Sample]) -> Batch:
        """Samples => batch, instance rows first."""
        rows = [row for half in zip(*(sample.rows for sample in samples), strict=True) for row in half]
        return Batch(
            numbers=[sample.number for sample in samples],
            images=torch.stack([row.image for row in rows]),
            texts=torch.stack([row.text for row in rows]),
        )


class ShardedOrder(Sampler[list[int]]):
    """Sample indices of each micro-batch of one process, from a given micro-batch and sample on.

    Row b of the n-th micro-batch from here on rank r is sample `first + (n * world_size + r) * batch_size + b`, so
    several processes consume the same samples as one. The length counts from the beginning of the run, as Lightning's
    progress does after a resume.
    """

    def __init__(self, length: int, start: int, first: int, batch_size: int, rank: int, world_size: int) -> None:
        self.length = length
        self.start = start
        self.first = first
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[list[int]]:
        for n in range(self.length - self.start):
            first = self.first + (n * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))


class OrderedLoader(DataLoader[Any]):
    """A loader that Lightning takes for resumable, as it is: its ShardedOrder starts where training stands.

    `waited_seconds` counts how long training has waited for batches.
    """

    waited_seconds = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches, with the wait for each measured."""
        batches_ = super().__iter__()
        while True:
            began = time.perf_counter()
            batch = next(batches_, None)
            self.waited_seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing needs to be kept."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing was kept."""
