"""What a study costs: training steps and UNet evaluations, and how long those take here."""

import time
from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.data.dataset import Batch
from lightning_dreambooth.diffusion.sampling import Request, sample
from lightning_dreambooth.evaluation.prompts import unet_evaluations
from lightning_dreambooth.models.stable_diffusion import tokenize

REPEATS = 3  # after a first one, which also sets things up


def cost_of_fit(job: DreamBoothCLI) -> tuple[int, int, int]:
    """A fit => optimizer steps, rows trained in each, and UNet evaluations of its measurements and sample grids."""
    steps, fidelity, samples, data = job.trainer.max_steps, job.fidelity, job.samples, job.datamodule
    measured = sum(unet_evaluations(probe.request) for probe in data.probes) * -(-steps // fidelity.every_n_steps)
    prompts = samples.prompts or [
        prompt for each in data.concepts for prompt in (each.instance_prompt, each.class_prompt) if prompt
    ]
    grid = sum(map(unet_evaluations, samples.requests(prompts)))
    rows = data.batch_size * (1 + data.with_prior) * job.trainer.accumulate_grad_batches
    return steps, rows, measured + grid * (1 + -(-steps // samples.every_n_steps))


def cost_of_test(job: DreamBoothCLI, prompts: int) -> int:
    """UNet evaluations of the paper's protocol for one subject."""
    benchmark = job.benchmark
    return prompts * len(benchmark.seeds) * unet_evaluations(Request("", 0, *benchmark.settings))


def room_for_fit(job: DreamBoothCLI) -> int:
    """Bytes on disk that a fit leaves: its exports. The states that it needs meanwhile go when it is done."""
    keep = job.keep
    return (keep.keep_exports + keep.keep_best) * job.datamodule.files.parameters * keep.dtype.itemsize


def what_is_timed(job: DreamBoothCLI) -> tuple[object, ...]:
    """What a step's time depends on, so that variants that are alike are timed once."""
    data, module, trainer = job.datamodule, job.model, job.trainer
    rows = (data.batch_size, data.with_prior, trainer.accumulate_grad_batches, module.gradient_checkpointing)
    return data.files.pretrained, data.resolution_px, str(trainer.precision), module.train_text_encoder, *rows


def seconds_each(job: DreamBoothCLI, batch_size: int) -> tuple[float, float]:
    """Seconds of an optimizer step and of a UNet evaluation in a batch of images, timed on the real model."""
    module, data, trainer = job.model, job.datamodule, job.trainer
    module.setup("fit")
    module.to(trainer.strategy.root_device)
    model = module.model
    requests = [Request("", seed, steps=2) for seed in range(batch_size)]
    evaluations = sum(map(unet_evaluations, requests))
    with trainer.precision_plugin.forward_context():
        drawing = _seconds(lambda: sample(model, requests, data.resolution_px)) / evaluations
    rows = data.batch_size * (1 + data.with_prior)
    texts = tokenize(data.tokenizer, [""] * rows).to(model.device)
    if not data.train_text_encoder:
        with torch.no_grad():
            texts = model.embed(texts)
    channels, *size = model.latent_shape(data.resolution_px)
    images = torch.zeros(rows, 2 * channels, *size, device=model.device)
    numbers = count()
    optimizer = module.optimizer([weight for part in module.trained.values() for weight in part.parameters()])

    def step() -> None:
        for _ in range(trainer.accumulate_grad_batches):
            batch = Batch([next(numbers) for _ in range(data.batch_size)], images, texts)
            with trainer.precision_plugin.forward_context():
                loss: Tensor = module.loss(batch).total
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    training = _seconds(step)
    del module.model
    return training, drawing


def _seconds(work: Callable[[], object]) -> float:
    """Seconds that something takes, the mean of a few."""
    work()
    _settle()
    began = time.perf_counter()
    for _ in range(REPEATS):
        work()
    _settle()
    return (time.perf_counter() - began) / REPEATS


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
