"""Samples as pure functions of their index: an instance row and a class row of the same concept."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from lightning_dreambooth import randomness
from lightning_dreambooth.data.concepts import TrainingImage
from lightning_dreambooth.data.draws import Draws, DrawSource
from lightning_dreambooth.data.images import View
from lightning_dreambooth.data.latents import LatentCache, load_pixels
from lightning_dreambooth.data.masks import Masks
from lightning_dreambooth.data.training_images import HALVES, ConceptImages
from lightning_dreambooth.models.base_model import BaseModel
from lightning_dreambooth.models.conditioning import Conditioning, stack
from lightning_dreambooth.models.tokens import TokenIds, without_repeats
from lightning_dreambooth.sizes import Size

RANDOM_CROPS = 8  # places a random crop chooses from, so that cached and live images are the same
Prior = Literal["images", "teacher"]


class TrainingSetup(NamedTuple):
    """The settings of the module that the datamodule needs.

    Attributes:
        base: The base model, which the module takes over when the data is ready.
        prior: Whether class rows show class images or a teacher gives their targets; None trains without them.
        train_text_encoder: Whether the text encoder is trained, so that prompts stay token ids.
        seed: Seed of all draws.
        noise_offset: Strength of the per-channel noise offset.
    """

    base: BaseModel
    prior: Prior | None
    train_text_encoder: bool
    seed: int
    noise_offset: float


class Moments(NamedTuple):
    """Images as the VAE's posterior: mean and standard deviation of the scaled latents, stacked along the channels."""

    values: Float[Tensor, "rows twice_c h w"]


class Pixels(NamedTuple):
    """Images as bytes 0 ... 255."""

    values: UInt8[Tensor, "rows 3 height width"]


class Row(NamedTuple):
    """One image, as moments if latents are cached, else as pixels; its prompt, and the weights of a masked loss."""

    image: Tensor
    prompt: str
    weights: Tensor | None = None


class Sample(NamedTuple):
    """An instance row and, while the prior is on, a class row of the same concept."""

    sample_index: int
    rows: tuple[Row, ...]


class Batch(NamedTuple):
    """B samples as `rows`: B instance rows, then B class rows while the prior is on.

    Attributes:
        indices: Indices of the B samples.
        halves: Which halves the rows consist of.
        images: Moments if latents are cached, else pixels.
        prompts: Conditioning if the text encoder is frozen, else token ids.
        draws: Noise and timesteps of the rows.
        weights: How much each place counts in a masked loss, 0 ... 1; None if all count alike.
    """

    indices: list[int]
    halves: tuple[str, ...]
    images: Moments | Pixels
    prompts: Conditioning | TokenIds
    draws: Draws
    weights: Float[Tensor, "rows 1 h w"] | None = None


def training_views(crop: Literal["center", "random"], flip: bool, seed: int) -> list[View]:
    """The views that training draws from, the same for every image."""
    if crop == "center":
        places: list[tuple[float, ...]] = [(0.5, 0.5)]
    else:
        places = [randomness.uniform(seed, "crop", j, 2) for j in range(RANDOM_CROPS)]
    return [View(mirrored, *place) for place in places for mirrored in ([False, True] if flip else [False])]


def concept_cycle(weights: Sequence[int]) -> list[tuple[int, int]]:
    """One round of (concept, visit within the round) pairs: concept c occurs weights[c] times, evenly spread."""
    places = [((j + 0.5) / weight, c, j) for c, weight in enumerate(weights) for j in range(weight)]
    return [(c, j) for _, c, j in sorted(places)]


class PairDataset(Dataset[Sample]):
    """Maps a sample index to its rows; every instance image of a concept is seen equally often.

    Args:
        concepts: The images of each concept; of each of its buckets, if there are any.
        prompts: Every prompt, the empty one included, as token ids, or as conditioning if the text encoder is frozen.
        views: The views that each row draws from.
        resolution_px: Side of the squares that are trained on.
        caption_dropout: Probability in [0, 1] that a row is trained with the empty prompt (Ho & Salimans 2022).
        seed: Seed of order, views and dropout.
        draw: Draws noise and timesteps.
        cache: Encoded images; None reads the image files instead.
        masks: Weights of a masked loss; None: all places count alike.
        together: Samples that are of one concept and bucket: those of a batch, if there are buckets.
    """

    def __init__(
        self,
        concepts: Sequence[ConceptImages],
        prompts: Mapping[str, Tensor] | Mapping[str, Conditioning],
        views: Sequence[View],
        resolution_px: int,
        caption_dropout: float,
        seed: int,
        draw: DrawSource,
        cache: LatentCache | None,
        masks: Masks | None = None,
        together: int = 1,
    ) -> None:
        self.concepts = concepts
        self.prompts = prompts
        self.views = views
        self.resolution_px = resolution_px
        self.caption_dropout = caption_dropout
        self.seed = seed
        self.draw = draw
        self.cache = cache
        self.masks = masks
        self.together = together
        numbers = sorted({concept.number for concept in concepts})
        self.buckets = [[i for i, concept in enumerate(concepts) if concept.number == number] for number in numbers]
        self.cycle = concept_cycle([concepts[buckets[0]].weight for buckets in self.buckets])
        # In a round of its concept, a bucket has as many turns as instance images.
        self.bucket_cycles = [concept_cycle([len(concepts[i].instances) for i in buckets]) for buckets in self.buckets]
        self.taught = any(concept.taught_prompt is not None for concept in concepts)

    def images(self, index: int) -> tuple[TrainingImage, ...]:
        """The instance image of a sample and, while the prior is on, the image of the class row it is paired with."""
        c, visit = self._visit(index)
        halves = zip(HALVES, (self.concepts[c].instances, self.concepts[c].class_rows), strict=True)
        return tuple(
            images[randomness.visit(self.seed, f"{self._drawn_as(half)} {c}", visit, len(images))]
            for half, images in halves if images
        )  # fmt: skip

    def _visit(self, index: int) -> tuple[int, int]:
        """The images, of a concept or a bucket of it, that a sample is from, and how often they were visited before."""
        group, place = divmod(index, self.together)
        turn, slot = divmod(group, len(self.cycle))
        number, j = self.cycle[slot]
        buckets, cycle = self.buckets[number], self.bucket_cycles[number]
        bucket_turn, bucket_slot = divmod(turn * self.concepts[buckets[0]].weight + j, len(cycle))
        k, bucket_j = cycle[bucket_slot]
        c = buckets[k]
        return c, (bucket_turn * len(self.concepts[c].instances) + bucket_j) * self.together + place

    def _drawn_as(self, half: str) -> str:
        """The half whose draws a row has: with a teacher, a class row repeats its instance row but for the prompt."""
        return "instance" if self.taught else half

    def __getitem__(self, index: int) -> Sample:
        rows = zip(HALVES, self.images(index), strict=False)
        size = self.concepts[self._visit(index)[0]].size or self.resolution_px
        return Sample(index, tuple(self._row(index, half, image, size) for half, image in rows))

    def _row(self, index: int, half: str, image: TrainingImage, size: Size) -> Row:
        view = self.views[int(randomness.integers(self.seed, f"view {self._drawn_as(half)}", [index], len(self.views)))]
        dropped = randomness.chance(self.seed, f"caption dropout {half}", index, self.caption_dropout)
        prompt = "" if dropped else image.prompt
        weights = self.masks.of(image.path, view) if self.masks and half == "instance" else None
        if self.cache is None:
            return Row(load_pixels(image.path, view, size), prompt, weights)
        return Row(self.cache.get(image.path, view), prompt, weights)

    def collate(self, samples: list[Sample]) -> Batch:
        """Samples => batch, instance rows first."""
        rows = [row for half in zip(*(sample.rows for sample in samples), strict=True) for row in half]
        images = torch.stack([row.image for row in rows])
        prompts = [self.prompts[row.prompt] for row in rows]
        ids = [prompt for prompt in prompts if isinstance(prompt, Tensor)]
        encoded = [prompt for prompt in prompts if not isinstance(prompt, Tensor)]
        indices, halves = [sample.sample_index for sample in samples], HALVES[: len(samples[0].rows)]
        size = self._latent_size(images)
        return Batch(
            indices=indices,
            halves=halves,
            images=Pixels(images) if self.cache is None else Moments(images),
            prompts=without_repeats(torch.stack(ids)) if ids else stack(encoded),
            draws=self.draw(indices, [self._drawn_as(half) for half in halves], size),
            weights=self._weights(rows, size) if self.masks else None,
        )

    def _latent_size(self, images: Tensor) -> tuple[int, int]:
        """Height and width of the latents of images or moments."""
        height, width = images.shape[2:]
        factor = self.resolution_px // self.draw.latent_shape[2] if self.cache is None else 1
        return height // factor, width // factor

    def _weights(self, rows: Sequence[Row], size: tuple[int, int]) -> Float[Tensor, "rows 1 h w"]:
        """The weights of a masked loss: 1 everywhere in class rows, because the base is kept as a whole."""
        return torch.stack([torch.ones(1, *size) if row.weights is None else row.weights for row in rows])
