"""LightningDataModule from concepts to batches of instance and class rows."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from transformers import CLIPTokenizer

from lightning_dreambooth.bounds import check_range
from lightning_dreambooth.data import checks, image_checks
from lightning_dreambooth.data.buckets import buckets_of, class_concepts
from lightning_dreambooth.data.class_images import ClassImageRecipe, ClassImages
from lightning_dreambooth.data.concepts import Concept, given_concepts, instance_images
from lightning_dreambooth.data.dataset import PairDataset, TrainingSetup, training_views
from lightning_dreambooth.data.draws import DrawSource
from lightning_dreambooth.data.latents import ENCODE_BATCH, LatentCache, encode_prompts, images_at_once
from lightning_dreambooth.data.loading import OrderedLoader, ShardedOrder
from lightning_dreambooth.data.masks import Masks
from lightning_dreambooth.data.training_images import ConceptImages, bucketed, concept_images, data_digests, sizes_of
from lightning_dreambooth.diffusion.requests import MAX_IMAGES, Sampler, SamplingSettings, of_section
from lightning_dreambooth.distributed import ignore_signals_in_worker, rank, world_size
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.inputs import expand
from lightning_dreambooth.models.conditioning import Conditioning
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.models.tokens import load_tokenizer, tokenize
from lightning_dreambooth.sizes import Size, sides


class DreamBoothData(pl.LightningDataModule):
    """Pairs instance images with class images of the same concept.

    Args:
        instance_prompt: Prompt of the instance images without a caption of their own.
        instance_data_dir: Folder of the instance images.
        class_prompt: Prompt of the class rows.
        class_data_dir: Folder of the class images, filled up to num_class_images; a teacher (model.prior) needs none.
        identifier: The rare word in the instance prompt that stands for the subject or style.
        held_out_dir: Folder of further instance images that are only measured.
        concepts_list: JSON file with several concepts, in place of the six arguments above.
        num_instance_images: Instance images per concept that are trained on, the first by name; null takes all.
        num_class_images: Class images per concept.
        resolution: Side in px of the squares that are trained on and drawn; null takes the model's own.
        batch_size: Samples per step and process; with the prior on, each sample is an instance and a class row.
        crop: Where the square is cut from an image that is not square: its center, or one of 8 random places.
        flip: Whether half of the rows are mirrored.
        buckets: Whether each image is trained on in nearly its own shape, at the area of the resolution, with class
            images of that shape; else as a square.
        masked_loss: Weight in the loss of what lies outside of an instance image's mask, 0 ... 1: of `name.mask.png`
            beside `name.png`, else of what is transparent in it; null counts all places alike.
        caption_dropout: Probability that a row is trained with the empty prompt.
        cache_latents: Whether images are encoded once before training, or at every step.
        cache_dir: Folder for encoded images, shared between runs; null keeps them in memory.
        num_workers: Loader processes; useful only when latents are not cached.
        class_negative_prompt: Negative prompt of generated class images.
        class_steps: Sampling steps of generated class images.
        class_guidance_scale: Guidance scale of generated class images.
        class_sampler: Sampler of generated class images.
        class_batch_size: Class images drawn at once.
        training_setup: Linked to model.
    """

    def __init__(
        self,
        instance_prompt: str | None = None,
        instance_data_dir: str | None = None,
        class_prompt: str | None = None,
        class_data_dir: str | None = None,
        identifier: str | None = None,
        held_out_dir: str | None = None,
        concepts_list: str | None = None,
        num_instance_images: int | None = None,
        num_class_images: int = 200,
        resolution: int | None = None,
        batch_size: int = 1,
        crop: Literal["center", "random"] = "center",
        flip: bool = False,
        buckets: bool = False,
        masked_loss: float | None = None,
        caption_dropout: float = 0.0,
        cache_latents: bool = True,
        cache_dir: str | None = None,
        num_workers: int = 0,
        class_negative_prompt: str = "",
        class_steps: int = 25,
        class_guidance_scale: float = 7.5,
        class_sampler: Sampler = "dpm++",
        class_batch_size: int = 4,
        training_setup: TrainingSetup | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["training_setup"])
        self.flags = {
            "instance_prompt": instance_prompt, "instance_data_dir": instance_data_dir,
            "class_prompt": class_prompt, "class_data_dir": class_data_dir, "identifier": identifier,
            "held_out_dir": held_out_dir,
        }  # fmt: skip
        self.concepts_list = concepts_list
        self.num_instance_images = num_instance_images
        self.num_class_images = num_class_images
        self.resolution = resolution
        self.batch_size = batch_size
        self.crop = crop
        self.flip = flip
        self.buckets = buckets
        self.masked_loss = masked_loss
        self.caption_dropout = caption_dropout
        self.cache_latents = cache_latents
        self.cache_dir = None if cache_dir is None else Path(expand(cache_dir))
        self.num_workers = num_workers
        with of_section("data.class_"):
            sampling = (class_negative_prompt, class_steps, class_guidance_scale, class_sampler)
            self.class_settings = SamplingSettings(*sampling)
        self.class_batch_size = class_batch_size
        if training_setup is None:
            raise InputError("data.training_setup is not given; take that of the module")
        self.base, self.prior, self.train_text_encoder, self.seed, self.noise_offset = training_setup
        self.files = self.base.files
        self.checked = False
        self.resumed = (0, 0)
        self.data_digests: dict[str, str] = {}  # from setup on
        counts = ("num_instance_images", "num_class_images", "resolution", "batch_size", "class_batch_size")
        checks.check_positive("data", {name: getattr(self, name) for name in counts}, MAX_IMAGES)
        check_range("data.caption_dropout", caption_dropout, 0, 1)
        check_range("data.masked_loss", masked_loss, 0, 1)

    @cached_property
    def concepts(self) -> list[Concept]:
        """The concepts from the flags or from the JSON file."""
        return given_concepts(self.concepts_list, self.flags)

    @property
    def identifier(self) -> str | None:
        """The identifier of a concept given by options; None if concepts come from a file."""
        return self.flags["identifier"]

    @cached_property
    def resolution_px(self) -> int:
        """Side in px of the squares that are trained on and drawn."""
        return self.resolution or self.files.native_resolution_px

    @property
    def rows_per_sample(self) -> int:
        """Rows of each sample in a batch: an instance row and, while the prior is on, a class row."""
        return 1 + (self.prior is not None)

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The model's tokenizer."""
        return load_tokenizer(self.files.folder)

    def images(self, training: bool = True) -> list[ConceptImages]:
        """The training images of each concept; class rows only for training with the prior."""
        classes = self.num_class_images if training and self.prior == "images" else 0
        taught = training and self.prior == "teacher"
        sets = concept_images(self.concepts, classes, self.num_instance_images, taught)
        return bucketed(self.concepts, sets, self.sizes, classes) if self.buckets else sets

    @cached_property
    def sizes(self) -> dict[Path, Size]:
        """The bucket of each instance image; empty if all are trained on as squares."""
        if not self.buckets:
            return {}
        images = [image for concept in self.concepts for image in instance_images(concept)]
        return buckets_of(images, self.resolution_px, self.files.vae_factor)

    def class_images(self) -> list[ClassImages]:
        """The class images of each concept; none if the prior does not need them."""
        images = []
        for concept in self.concepts if self.prior == "images" else []:
            count = concept.num_class_images or self.num_class_images
            by_size: dict[Size, Concept] = {self.resolution_px: replace(concept, num_class_images=count)}
            if self.buckets:
                instances = instance_images(concept)[: self.num_instance_images]
                by_size = class_concepts(concept, [self.sizes[image.path] for image in instances], count)
            for size, part in by_size.items():
                recipe = ClassImageRecipe(str(concept.class_prompt), self.class_settings, size, self.files.fingerprint)
                images.append(
                    ClassImages(part, int(part.num_class_images or 0), recipe, self.seed, self.class_batch_size)
                )
        return images

    def check(self, training: bool = True) -> None:
        """Checks everything that `fit` or `validate` will read, before a model is loaded; only the first call does.

        Raises:
            InputError: if images, prompts, sizes or class images cannot be trained on.

        Warns:
            InputWarning: if they can, but are probably not intended.
        """
        if self.checked:
            return
        checks.check_resolution(self.resolution_px, self.files.vae_factor)
        needs_class = self.prior == "images" and training
        checks.check_concepts(self.concepts, needs_class)
        if self.prior == "teacher" and training:
            checks.check_taught(self.concepts)
        image_checks.check_images(
            self.concepts, needs_class, self.resolution_px, self.masked_loss is not None, self.buckets
        )
        if needs_class:
            for class_images in self.class_images():
                class_images.missing()  # refuses those of another recipe
        sets = self.images(training)
        all_instances = concept_images(self.concepts, 0, self.num_instance_images)
        checks.check_enough([concept.instances for concept in all_instances], self.num_instance_images)
        prompts = [image.prompt for concept in sets for image in (*concept.instances, *concept.class_rows)]
        prompts += [str(concept.class_prompt or "") for concept in self.concepts]
        checks.check_lengths(prompts, self.tokenizer)
        self.checked = True

    def prepare_data(self) -> None:
        """Checks everything, for use without the command line."""
        self.check()

    def setup(self, stage: str) -> None:
        """Draws missing class images and fills the caches, all processes together."""
        trainer: Any = self.trainer
        load = partial(self.base.load, trainer.strategy.root_device)
        with trainer.precision_plugin.forward_context():
            self.draw_class_images(load)
            self.dataset = self._build_dataset(load, str(trainer.precision))

    def draw_class_images(self, load: Callable[[], StableDiffusion]) -> None:
        """Draws missing class images, all processes together; `load` returns the base model."""
        for class_images in self.class_images():
            class_images.fill(load)

    def _build_dataset(self, load: Callable[[], StableDiffusion], precision: str) -> PairDataset:
        sets = self.images()
        images = [image for concept in sets for image in concept.instances + concept.class_rows]
        self.data_digests = data_digests(sets, self.masked_loss is not None)
        views = training_views(self.crop, self.flip, self.seed)
        prompts = sorted({"", *(image.prompt for image in images)})
        by_prompt: dict[str, torch.Tensor] | dict[str, Conditioning]
        if self.train_text_encoder:
            by_prompt = dict(zip(prompts, tokenize(self.tokenizer, prompts), strict=True))
        else:
            by_prompt = encode_prompts(load(), prompts, ENCODE_BATCH)
        latents = None
        if self.cache_latents:
            encoder, sizes = f"{self.files.vae_fingerprint} {precision}", sizes_of(sets)
            latents = LatentCache(encoder, self.resolution_px, self.cache_dir, sizes)
            seen = [(image.path, view) for image in images for view in views]
            at_once = images_at_once(self.resolution_px)
            latents.fill(seen, lambda pixels: load().encode(pixels.to(load().device)), at_once)
        model = load()
        shape = model.latent_shape(self.resolution_px)
        draw = DrawSource(self.seed, self.noise_offset, shape, len(model.alphas_bar))
        masks = None
        if self.masked_loss is not None:
            instances = [image for concept in sets for image in concept.instances]
            masks = Masks(instances, views, self._latent_size, self.masked_loss)
        how, together = (self.resolution_px, self.caption_dropout, self.seed), self.batch_size if self.buckets else 1
        return PairDataset(sets, by_prompt, views, *how, draw, latents, masks, together)

    def _latent_size(self, path: Path) -> tuple[int, int]:
        """Width and height of the latents of an instance image."""
        width, height = sides(self.sizes.get(path, self.resolution_px))
        return width // self.files.vae_factor, height // self.files.vae_factor

    def samples_seen(self, step: int) -> int:
        """Number of samples that training has consumed before an optimizer step, whatever the batch sizes were."""
        trainer: Any = self.trainer
        first_step, first_sample = self.resumed
        per_step = self.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        return first_sample + (step - first_step) * per_step

    def state_dict(self) -> dict[str, Any]:
        """What a state records: the base weights, the images and prompts, and how many samples were seen."""
        trainer: Any = self.trainer
        seen = {"step": trainer.global_step, "samples": self.samples_seen(trainer.global_step)}
        return {"base_model": self.files.fingerprint, "data_digests": self.data_digests} | seen

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues with the first sample that was not seen.

        Warns:
            InputWarning: if images or prompts differ from those that the state names.
        """
        self.resumed = (int(state["step"]), int(state["samples"]))
        if self.data_digests:
            checks.check_same(state.get("data_digests", self.data_digests), self.data_digests)

    def train_dataloader(self) -> OrderedLoader:
        """Micro-batches from the current step to `max_steps`, as one long epoch."""
        trainer: Any = self.trainer
        accumulation, seen = trainer.accumulate_grad_batches, self.samples_seen(trainer.global_step)
        if self.buckets and seen % self.batch_size:
            raise InputError(
                f"data.batch_size is {self.batch_size}, must divide the {seen} samples that the state has seen: with "
                "data.buckets, a batch is of one bucket"
            )
        order = ShardedOrder(
            trainer.max_steps * accumulation, trainer.global_step * accumulation,
            seen, self.batch_size, rank(), world_size(),
        )  # fmt: skip
        return OrderedLoader(
            self.dataset, batch_sampler=order, collate_fn=self.dataset.collate, worker_init_fn=ignore_signals_in_worker,
            num_workers=self.num_workers, pin_memory=trainer.strategy.root_device.type == "cuda",
        )  # fmt: skip
