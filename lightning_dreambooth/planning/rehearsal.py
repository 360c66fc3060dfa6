"""Rehearsal of a `fit` on fake tensors: shapes, lifetimes and operations are real, numbers do not exist."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.diffusion.requests import Request, SamplingSettings
from lightning_dreambooth.evaluation.fixed_noise_loss import FixedSample, stratified_errors
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.optimization import without_waits
from lightning_dreambooth.planning.memory import LiveMemory
from lightning_dreambooth.planning.work import Work
from lightning_dreambooth.study.cost import empty_batches

HARMLESS = [  # warnings
    "The .grad attribute of a Tensor that is not a leaf",  # of adapters, which peft makes with numbers
    "Accessing the data pointer of FakeTensor",  # deepcopy looks for it
]


class Rehearsal:
    """A `fit` whose tensors are fake: they live on the job's device, but have no numbers and take no memory.

    Its parts are rehearsed in the order of a `fit`; each returns its work.

    Args:
        job: The job. Its module is set up, and of no use after it.

    Attributes:
        memory: The memory of the device; its peak is that since `weights`, or since it was last set.
        weights: Bytes of the model, with adapters, moving average and teacher.
        gradients: Bytes of the gradients, when all are there.
        states: Bytes of the optimizer's states.
        activations: Bytes that live between forward and backward.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.device = job, job.trainer.strategy.root_device
        self.side_px = job.data.resolution_px
        self.memory = LiveMemory(self.device.type)
        self._drawn: dict[tuple[int, SamplingSettings], tuple[Work, int]] = {}  # and bytes beside what lives
        model = StableDiffusion.without_weights(job.data.files)
        with self._watched():
            with FakeTensorMode(allow_non_fake_inputs=True):
                model.to_empty(device=self.device)
            job.module.base.put(model)
            job.module.setup("fit")
        self.weights = self.memory.live
        self.memory.settle()
        self.memory.peak = self.memory.resident
        if self.device.type == "cpu":
            self.memory.peak = max(self.memory.peak, model.loading_bytes(job.data.files))
        job.module.trainer = job.trainer
        job.module._device = self.device  # Module.to refuses fakes (pytorch#148977)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        with warnings.catch_warnings(), self.memory:
            for harmless in HARMLESS:
                warnings.filterwarnings("ignore", harmless, UserWarning)
            yield

    def _work(self, do: Callable[[], object]) -> Work:
        with self._watched(), Work() as work:
            do()
        return work

    def train(self) -> tuple[Work, Work]:
        """Two optimizer steps: in the second, the optimizer has its states from the beginning.

        Returns:
            The work of a micro-batch, and that of the update.
        """
        module, trainer = self.job.module, self.job.trainer
        with self._watched():
            configured: Any = module.configure_optimizers()
            self.optimizer: Any = configured["optimizer"]
            batches = empty_batches(self.job)
        trained = [weight for named in module.trained.values() for weight in named.values()]
        self.gradients = sum(weight.nbytes for weight in trained)

        def micro_batch() -> None:
            before = self.memory.live
            with trainer.precision_plugin.forward_context():
                loss = module.loss(next(batches)).total
            self.activations = self.memory.live - before
            loss.backward()

        def update() -> None:
            optimizer = self.optimizer  # kept, with its states, for what is drawn after training
            module.configure_gradient_clipping(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
            with without_waits(optimizer):
                optimizer.step()
            optimizer.zero_grad()
            if module.ema is not None:
                module.ema.update()

        for _ in range(2):
            for _ in range(min(2, trainer.accumulate_grad_batches)):  # gradients live during the second
                work = self._work(micro_batch)
            works = work, self._work(update)
        states = [value for named in self.optimizer.state.values() for value in named.values()]
        self.states = sum(value.nbytes for value in states if isinstance(value, Tensor))
        module.gradients = None  # drawing would ask for their faults, which only numbers could tell
        return works

    def draw(self, requests: Sequence[Request]) -> Work:
        """Draws a batch of images in one sampling step, as all of them take no more memory => the work of all.

        Batches that differ only in prompts and seeds are drawn once: later ones find the holes of the first.
        """
        drawn, memory = (len(requests), requests[0].settings), self.memory
        if drawn not in self._drawn:
            before, live, memory.peak = memory.peak, memory.live, memory.resident
            work = self._work(lambda: self._draw_in_one_step(requests))
            needed, (_, settings) = memory.peak - live, drawn
            step = self._predict(len(requests) * (2 if settings.guided else 1))
            self._drawn[drawn] = work.extended(step, settings.steps - 1), needed
            memory.peak = max(before, memory.peak)
        work, needed = self._drawn[drawn]
        memory.peak = max(memory.peak, memory.live + needed)
        return work

    def _draw_in_one_step(self, requests: Sequence[Request]) -> None:
        settings = replace(requests[0].settings, steps=1)
        with self.job.trainer.precision_plugin.forward_context():
            self.job.module.draw([request._replace(settings=settings) for request in requests], self.side_px)

    @torch.no_grad()
    def _predict(self, rows: int) -> Work:
        """The model's part of a sampling step."""
        model = self.job.module.model
        with self._watched():
            conditioning = model.embed(model.tokenize([""] * rows))
            noisy = torch.zeros(rows, *model.latent_shape(self.side_px), device=self.device)
            timesteps = torch.zeros(rows, dtype=torch.long, device=self.device)
        with self.job.trainer.precision_plugin.forward_context():
            return self._work(lambda: model.predict(noisy, timesteps, conditioning))

    def encode(self, count: int) -> Work:
        """Encodes so many images at once."""
        model, side_px = self.job.module.model, self.side_px
        pixels = torch.zeros(count, 3, side_px, side_px, dtype=torch.uint8, device=self.device)
        with self.job.trainer.precision_plugin.forward_context():
            return self._work(lambda: model.encode(pixels))

    def fixed_noise_loss(self) -> Work:
        """Computes the fixed-noise losses of one image."""
        model = self.job.module.model
        fixed = FixedSample(torch.zeros(model.latent_shape(self.side_px), device=self.device), "")
        with self.job.trainer.precision_plugin.forward_context():
            return self._work(lambda: stratified_errors(model, fixed, 0, "", 0))

    def export(self) -> None:
        """Takes the host memory of an export: copies of a part's weights, or a second model that reads files back."""
        module, form = self.job.module, self.job.callbacks.checkpointing.form
        if module.lora is not None or form.single_file:
            extra = module.model.loading_bytes(module.files)
        else:
            parts = [sum(weight.numel() for weight in part.parameters()) for part in module.model.trainable.values()]
            extra = max(parts) * form.dtype.itemsize
        self.memory.peak = self.memory.resident + extra

    @property
    def filled_by(self) -> dict[str, int]:
        """What fills the memory of training, in bytes by name; gradients come while saved activations go."""
        return {
            "weights": self.weights, "optimizer states": self.states, "gradients": self.gradients,
            "saved activations": self.activations,
        }  # fmt: skip
