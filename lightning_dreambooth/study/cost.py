"""Cost of a study: training steps and UNet evaluations, and their time on this machine."""

import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.data.dataset import Batch, Moments
from lightning_dreambooth.data.draws import Draws, DrawSource
from lightning_dreambooth.data.training_images import HALVES
from lightning_dreambooth.diffusion.cost import TRAINING_ROW, unet_evaluations
from lightning_dreambooth.diffusion.requests import Request, SamplingSettings
from lightning_dreambooth.diffusion.sampling import sample

REPEATS = 3  # after a first call that is not timed


class Cost(NamedTuple):
    """The cost of a task.

    Attributes:
        steps: Optimizer steps.
        rows: Rows trained in each step.
        taught: Rows of each step whose target a teacher predicts.
        evaluations: UNet evaluations for images.
    """

    steps: int = 0
    rows: int = 0
    taught: int = 0
    evaluations: int = 0

    @property
    def total(self) -> int:
        """The whole cost in UNet evaluations."""
        return self.steps * (self.rows * TRAINING_ROW + self.taught) + self.evaluations


def fit_cost(job: Job) -> Cost:
    """Cost of a fit with its measurements and sample grids."""
    steps, samples, fidelity = job.trainer.max_steps, job.callbacks.samples, job.callbacks.fidelity
    probes = fidelity.measurement.probes if fidelity.measurement else []
    measured = unet_evaluations(probe.request for probe in probes) * -(-steps // fidelity.every_n_steps)
    grids = unet_evaluations(samples.requests(job.data.concepts)) * (1 + -(-steps // samples.every_n_steps))
    accumulated = job.trainer.accumulate_grad_batches
    taught = job.data.batch_size * accumulated if job.data.prior == "teacher" else 0
    return Cost(steps, _rows(job) * accumulated, taught, measured + grids)


def _rows(job: Job) -> int:
    """Rows of a micro-batch."""
    return job.data.batch_size * job.data.rows_per_sample


def room_for_fit(job: Job) -> int:
    """Bytes on disk that a finished fit leaves: its exports, since a study removes its states."""
    checkpointing = job.callbacks.checkpointing
    exports, form = checkpointing.keep_exports + checkpointing.keep_best, checkpointing.form
    models = form.single_file + (job.module.lora is None or form.fused)  # a LoRA file is small beside them
    return exports * models * job.data.files.parameters * form.dtype.itemsize


def timing_key(job: Job) -> tuple[object, ...]:
    """Everything that the time of a step depends on; variants with equal keys are timed once."""
    data, module, trainer = job.data, job.module, job.trainer
    rows = (data.prior, _rows(job), trainer.accumulate_grad_batches)
    return data.files.pretrained, data.resolution_px, str(trainer.precision), module.training_options, *rows


def time_job(job: Job, batch_size: int) -> tuple[float, float]:
    """Seconds of an optimizer step, and of a UNet evaluation per image in a batch, timed with the job's model."""
    module, data, trainer = job.module, job.data, job.trainer
    module.setup("fit")
    module.to(trainer.strategy.root_device)
    requests = [Request("", seed, SamplingSettings(steps=2)) for seed in range(batch_size)]
    with trainer.precision_plugin.forward_context():
        drawing = _seconds(lambda: sample(module.model, requests, data.resolution_px)) / unet_evaluations(requests)
    training = _seconds(training_step(job))
    module.release()
    return training, drawing


def empty_batches(job: Job) -> Iterator[Batch]:
    """Batches of a job whose module is set up: empty images and prompts, with the draws of training."""
    module, data, model = job.module, job.data, job.module.model
    token_ids = model.tokenize([""] * _rows(job))
    with torch.no_grad():
        prompts = token_ids if module.train_text_encoder else model.embed(token_ids)
    shape = model.latent_shape(data.resolution_px)
    images = Moments(torch.zeros(_rows(job), 2 * shape[0], *shape[1:], device=model.device))
    draw = DrawSource(module.seed, module.noise_offset, shape, len(model.alphas_bar))
    halves = HALVES[: data.rows_per_sample]
    for first in count(step=data.batch_size):
        indices = [*range(first, first + data.batch_size)]
        draws = Draws(*(drawn.to(model.device) for drawn in draw(indices, halves)))
        yield Batch(indices, halves, images, prompts, draws)


def training_step(job: Job) -> Callable[[], None]:
    """An optimizer step of a job whose module is set up, on empty images."""
    module, trainer, batches = job.module, job.trainer, empty_batches(job)
    optimizer = module.optimizer([weight for named in module.trained.values() for weight in named.values()])

    def step() -> None:
        for _ in range(trainer.accumulate_grad_batches):
            batch = next(batches)
            with trainer.precision_plugin.forward_context():
                loss: Tensor = module.loss(batch).total
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _seconds(work: Callable[[], object]) -> float:
    """Mean seconds of a few repetitions."""
    work()
    _synchronize()
    began = time.perf_counter()
    for _ in range(REPEATS):
        work()
    _synchronize()
    return (time.perf_counter() - began) / REPEATS


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
