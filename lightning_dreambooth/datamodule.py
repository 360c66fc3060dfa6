"""Concepts to batches, as a LightningDataModule: class images, caches, loaders, and how much of it was seen."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers import CLIPTokenizer

from lightning_dreambooth.data import checks, class_images
from lightning_dreambooth.data.class_images import ClassImageRecipe
from lightning_dreambooth.data.concepts import Concept, given_concepts
from lightning_dreambooth.data.dataset import (
    OrderedLoader,
    PairDataset,
    ShardedOrder,
    concept_images,
    data_digests,
    views_of,
)
from lightning_dreambooth.data.image_store import ImageJob
from lightning_dreambooth.data.latents import LatentCache, embeddings
from lightning_dreambooth.data.references import fill_references
from lightning_dreambooth.diffusion.sampling import Request, Sampler, batches, check_request
from lightning_dreambooth.distributed import ignore_signals_in_worker, rank, shard, world_size
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.prompts import Probe, Protocol
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion, load_tokenizer, tokenize

ENCODE_BATCH = 32  # images or prompts encoded at once


class DreamBoothData(pl.LightningDataModule):
    """Pairs instance images with class images of the same concept.

    Args:
        instance_prompt: Prompt of the instance images without a caption file (`name.txt` or `name.png.txt`).
        instance_data_dir: Folder of the instance images.
        class_prompt: Prompt of the class images.
        class_data_dir: Folder of the class images; filled with generated ones up to num_class_images.
        identifier: The rare word in the instance prompt that stands for the subject or style.
        held_out_dir: Folder of further instance images that are only measured.
        concepts_list: JSON file with several concepts, in place of the six arguments above.
        num_instance_images: Instance images per concept that are trained on, the first by name; null takes all.
        num_class_images: Class images per concept.
        resolution: Side in px of the squares that are trained on and drawn; null takes the model's own.
        batch_size: Samples per step and process; with the prior on, each sample is an instance and a class row.
        crop: Where the square is cut from an image that is none: its center, or one of eight random places.
        flip: Whether half of the rows are mirrored.
        caption_dropout: Probability that a row is trained with the empty prompt.
        cache_latents: Whether images are encoded once before training, or at every step.
        cache_dir: Folder for encoded images, shared between runs; null keeps them in memory.
        num_workers: Loader processes; useful only when latents are not cached.
        class_negative_prompt: Negative prompt of generated class images.
        class_steps: Sampling steps of generated class images.
        class_guidance_scale: Guidance scale of generated class images.
        class_sampler: Sampler of generated class images.
        class_batch_size: Class images drawn at once.
        pretrained: Linked to model.pretrained.
        vae: Linked to model.vae.
        revision: Linked to model.revision.
        variant: Linked to model.variant.
        prior_weight: Linked to model.prior_weight.
        train_text_encoder: Linked to model.train_text_encoder.
        seed: Linked to seed_everything.
        requests: The images that `predict` or `test` draws; linked to `samples`, set by `benchmark`.
        sample_batch_size: Linked to samples.batch_size.
        protocol: What is drawn to be measured; linked to `fidelity`.
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
        caption_dropout: float = 0.0,
        cache_latents: bool = True,
        cache_dir: str | None = None,
        num_workers: int = 0,
        class_negative_prompt: str = "",
        class_steps: int = 25,
        class_guidance_scale: float = 7.5,
        class_sampler: Sampler = "dpm++",
        class_batch_size: int = 4,
        pretrained: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
        vae: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        prior_weight: float = 1.0,
        train_text_encoder: bool = False,
        seed: int = 0,
        requests: list[Request] | None = None,
        sample_batch_size: int = 4,
        protocol: Protocol | None = None,
    ) -> None:
        super().__init__()
        linked = ["pretrained", "vae", "revision", "variant", "prior_weight", "train_text_encoder", "seed", "requests"]
        self.save_hyperparameters(ignore=[*linked, "sample_batch_size", "protocol"])
        self.num_instance_images = num_instance_images
        self.num_class_images = num_class_images
        self.resolution = resolution
        self.batch_size = batch_size
        self.crop = crop
        self.flip = flip
        self.caption_dropout = caption_dropout
        self.cache_latents = cache_latents
        self.cache_dir = cache_dir
        self.num_workers = num_workers
        self.class_recipe = (class_negative_prompt, class_steps, class_guidance_scale, class_sampler)
        self.class_batch_size = class_batch_size
        self.files = ModelFiles(pretrained, vae, revision, variant)
        self.prior_weight = prior_weight
        self.train_text_encoder = train_text_encoder
        self.seed = seed
        self.requests = requests or []
        self.sample_batch_size = sample_batch_size
        self.protocol = protocol
        self.flags = {
            "instance_prompt": instance_prompt, "instance_data_dir": instance_data_dir,
            "class_prompt": class_prompt, "class_data_dir": class_data_dir, "identifier": identifier,
            "held_out_dir": held_out_dir,
        }  # fmt: skip
        self.concepts_list = concepts_list
        self.checked = False
        self.resumed = (0, 0)
        self.learned: dict[str, str] = {}  # from setup on
        self._check_values()

    def _check_values(self) -> None:
        bounded = ("num_instance_images", "num_class_images", "resolution", "batch_size", "class_batch_size")
        for name in (*bounded, "sample_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"data.{name} is {value}, must be 1 or more")
        if not 0 <= self.caption_dropout <= 1:
            raise InputError(f"data.caption_dropout is {self.caption_dropout}, must lie in 0 ... 1")
        for request in [Request("", 0, *self.class_recipe), *self.requests]:
            check_request(request)

    @cached_property
    def concepts(self) -> list[Concept]:
        """The concepts from the flags or from the JSON file."""
        return given_concepts(self.concepts_list, self.flags)

    @cached_property
    def resolution_px(self) -> int:
        """Side of the squares that are trained on and drawn."""
        return self.resolution or self.files.native_resolution_px

    @cached_property
    def model(self) -> StableDiffusion:
        """The original weights, loaded when first asked for and given away again at the end of `setup`."""
        return self._load(self.files)

    def _load(self, files: ModelFiles) -> StableDiffusion:
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        return StableDiffusion.load(files.folder, files.vae_folder, files.variant).to(device)

    @property
    def with_prior(self) -> bool:
        """Whether class images are trained on."""
        return self.prior_weight > 0

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The model's tokenizer."""
        return load_tokenizer(self.files.folder)

    def check(self, training: bool = True) -> None:
        """Looks at everything that `fit` or `validate` will read, before a model is loaded; only the first call does.

        Raises:
            InputError: if images, prompts, sizes or class images cannot be trained on.

        Warns:
            InputWarning: if they can, but are hardly meant so.
        """
        if self.checked:
            return
        checks.check_resolution(self.resolution_px, self.files.vae_factor)
        needs_class = self.with_prior and training
        checks.check_concepts(self.concepts, needs_class, self.resolution_px)
        if needs_class:
            self.missing_class_images()
        sets = concept_images(self.concepts, self.num_class_images * needs_class, self.num_instance_images)
        checks.check_enough([concept.instances for concept in sets], self.num_instance_images)
        prompts = [image.prompt for concept in sets for image in (*concept.instances, *concept.classes)]
        prompts += [str(concept.class_prompt or "") for concept in self.concepts]
        drawn = [*self.requests, *(probe.request for probe in self.probes)]
        checks.check_lengths([*prompts, *(request.prompt for request in drawn)], self.tokenizer)
        self.checked = True

    def check_requests(self) -> None:
        """Looks at what `predict` will draw.

        Raises:
            InputError: if that is nothing.
        """
        if not self.requests:
            raise InputError("nothing to draw: give samples.prompts or samples.prompts_file")
        checks.check_lengths([request.prompt for request in self.requests], self.tokenizer)

    def prepare_data(self) -> None:
        """Checks everything, for those who use this class without the command line."""
        if self.trainer and self.trainer.predicting:
            self.check_requests()
        elif not (self.trainer and self.trainer.testing):
            self.check(training=not (self.trainer and self.trainer.validating))

    def _class_images(self, concept: Concept) -> tuple[int, ClassImageRecipe]:
        recipe = ClassImageRecipe(
            str(concept.class_prompt), *self.class_recipe, self.resolution_px, self.files.fingerprint
        )
        return concept.num_class_images or self.num_class_images, recipe

    def _precision(self) -> AbstractContextManager[Any]:
        """The trainer's precision, for what is computed outside its steps."""
        return self.trainer.precision_plugin.forward_context() if self.trainer else nullcontext()

    @property
    def _precision_name(self) -> str:
        """Part of the name of what is kept: bf16 and fp32 give other bits."""
        return str(self.trainer.precision) if self.trainer else "32-true"

    def setup(self, stage: str) -> None:
        """Draws what is missing of class images and the untuned model's images, and for `fit` fills the caches.

        All processes work together.
        """
        with self._precision():
            if stage == "fit":
                self._setup_fit()
            if self.protocol and stage in ("fit", "validate"):
                self.base_images = self._base_images(self.protocol)
        self.__dict__.pop("model", None)

    def missing_class_images(self) -> list[ImageJob]:
        """The class images that are trained on and not there yet."""
        concepts = self.concepts if self.with_prior else []
        plans = [class_images.plan(concept, *self._class_images(concept), self.seed) for concept in concepts]
        return [wanted for plan in plans for wanted in plan]

    def draw_class_images(self) -> None:
        """Draws them, all processes together."""
        for concept in self.concepts if self.with_prior else []:
            wanted = self._class_images(concept)
            class_images.fill(concept, *wanted, self.seed, lambda: self.model, self.class_batch_size)

    def _setup_fit(self) -> None:
        self.draw_class_images()
        sets = concept_images(self.concepts, self.num_class_images * self.with_prior, self.num_instance_images)
        images = [image for concept in sets for image in concept.instances + concept.classes]
        prompts = sorted({"", *(image.prompt for image in images)})
        texts = tokenize(self.tokenizer, prompts)
        if not self.train_text_encoder:
            texts = embeddings(self.model, texts, ENCODE_BATCH)
        views = views_of(self.crop, self.flip, self.seed)
        latents = None
        if self.cache_latents:
            folder = None if self.cache_dir is None else Path(self.cache_dir)
            latents = LatentCache(f"{self.files.vae_fingerprint} {self._precision_name}", self.resolution_px, folder)
            wanted = [(image.path, view) for image in images for view in views]
            latents.fill(wanted, lambda images: self.model.encode(images.to(self.model.device)), ENCODE_BATCH)
        self.learned = data_digests(sets)
        by_prompt = dict(zip(prompts, texts, strict=True))
        self.dataset = PairDataset(sets, by_prompt, views, self.resolution_px, self.caption_dropout, self.seed, latents)

    def _base_images(self, protocol: Protocol) -> list[Path]:
        other = cache(lambda: self._load(self.base_files))
        return fill_references(
            [probe.request for probe in self.probes], self.resolution_px, self.base_files.fingerprint,
            self._precision_name, Path(protocol.base_dir),
            (lambda: self.model) if self.base_files is self.files else other, protocol.batch_size,
        )  # fmt: skip

    @cached_property
    def base_files(self) -> ModelFiles:
        """The model that drift is measured from."""
        base = self.protocol.base if self.protocol else None
        return self.files if base is None else ModelFiles(base, self.files.vae, None, self.files.variant)

    @cached_property
    def probes(self) -> list[Probe]:
        """The images that are drawn to be measured."""
        return self.protocol.probes(self.concepts) if self.protocol else []

    @cached_property
    def probe_batches(self) -> list[list[Request]]:
        """Their requests, in batches; the same ones on every process."""
        requests = [probe.request for probe in self.probes]
        return batches(requests, self.protocol.batch_size) if self.protocol else []

    def val_dataloader(self) -> DataLoader[Any]:
        """The batches that this process draws to be measured."""
        return DataLoader(shard(self.probe_batches), batch_size=None)  # type: ignore[arg-type]

    def samples_seen(self, step: int) -> int:
        """How many samples training has consumed up to an optimizer step, whatever the batch sizes were."""
        trainer: Any = self.trainer
        first_step, first_sample = self.resumed
        per_step = self.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        return first_sample + (step - first_step) * per_step

    def state_dict(self) -> dict[str, Any]:
        """What a state says of the data: what is learned, how much of it was seen, and from which weights on."""
        trainer: Any = self.trainer
        seen = {"step": trainer.global_step, "samples": self.samples_seen(trainer.global_step)}
        return {"base_model": self.files.fingerprint, "learned": self.learned} | seen

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with the first sample that was not seen.

        Warns:
            InputWarning: if other images or prompts are learned than before.
        """
        self.resumed = (int(state["step"]), int(state["samples"]))
        if self.learned:
            checks.check_same(state.get("learned", self.learned), self.learned)  # earlier versions did not say

    def train_dataloader(self) -> OrderedLoader:
        """Micro-batches from where training stands to `max_steps`, as one long epoch."""
        trainer: Any = self.trainer
        accumulation = trainer.accumulate_grad_batches
        order = ShardedOrder(
            trainer.max_steps * accumulation, trainer.global_step * accumulation,
            self.samples_seen(trainer.global_step), self.batch_size, rank(), world_size(),
        )  # fmt: skip
        return OrderedLoader(
            self.dataset, batch_sampler=order, collate_fn=self.dataset.collate, worker_init_fn=ignore_signals_in_worker,
            num_workers=self.num_workers, pin_memory=trainer.strategy.root_device.type == "cuda",
        )  # fmt: skip

    @cached_property
    def request_batches(self) -> list[list[Request]]:
        """The requested images, in batches of equal settings."""
        return batches(self.requests, self.sample_batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The batches that this process draws."""
        return DataLoader(shard(self.request_batches), batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Any]:
        """The batches that this process draws, one empty batch if nothing is left."""
        return DataLoader(shard(self.request_batches) or [[]], batch_size=None)  # type: ignore[arg-type]
