"""Phases of a `fit`: peak memory and time of each, predicted by a rehearsal on fake tensors."""

from collections.abc import Sequence
from typing import NamedTuple

from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.data.dataset import training_views
from lightning_dreambooth.data.latents import images_at_once
from lightning_dreambooth.diffusion.requests import Request
from lightning_dreambooth.evaluation.fixed_noise_loss import IMAGES
from lightning_dreambooth.planning.rehearsal import Rehearsal
from lightning_dreambooth.planning.work import Work

Repeated = tuple[int | float, Work]  # how often work is done


class Phase(NamedTuple):
    """A phase of a `fit`.

    Attributes:
        name: What it does.
        peak: Bytes on the device at its peak.
        work: Its operations, each with how often they are done.
    """

    name: str
    peak: int
    work: list[Repeated]


class Prediction(NamedTuple):
    """What a `fit` needs.

    Attributes:
        phases: Its phases, in order.
        filled_by: What fills the peak of training, in bytes by name.
    """

    phases: list[Phase]
    filled_by: dict[str, int]

    @property
    def fullest(self) -> Phase:
        """The phase with the highest peak."""
        return max(self.phases, key=lambda phase: phase.peak)


def predict(job: Job) -> Prediction:
    """Rehearses a job, which is of no use after it."""
    rehearsal = Rehearsal(job)
    steps, samples, fidelity = job.trainer.max_steps, job.callbacks.samples, job.callbacks.fidelity
    preparing = _phase(rehearsal, "preparing", _prepare(rehearsal))
    (micro_batch, update), micro_batches = rehearsal.train(), steps * job.trainer.accumulate_grad_batches
    training = _phase(rehearsal, "training", [(micro_batches, micro_batch), (steps, update)])
    grids = 1 + -(-steps // samples.every_n_steps)
    drawn = _draw(rehearsal, samples.requests(job.data.concepts), samples.batch_size, grids)
    phases = [preparing, training, _phase(rehearsal, "drawing samples", drawn)]
    measured: list[Repeated] = []
    if fidelity.measurement:
        requests = [probe.request for probe in fidelity.measurement.probes]
        measured += _draw(rehearsal, requests, fidelity.batch_size, -(-steps // fidelity.every_n_steps))
    if fidelity.losses_every_n_steps:
        losses = 1 + -(-steps // fidelity.losses_every_n_steps)
        measured.append((losses * _loss_sets(job) * IMAGES, rehearsal.fixed_noise_loss()))
    phases.append(_phase(rehearsal, "measuring", measured))
    if rehearsal.device.type == "cpu":
        rehearsal.export()
        phases.append(_phase(rehearsal, "saving", []))
    return Prediction(phases, rehearsal.filled_by)


def _phase(rehearsal: Rehearsal, name: str, work: list[Repeated]) -> Phase:
    peak, rehearsal.memory.peak = rehearsal.memory.peak, rehearsal.memory.resident
    return Phase(name, peak, work)


def _prepare(rehearsal: Rehearsal) -> list[Repeated]:
    job, work = rehearsal.job, []
    for images in job.data.class_images():
        work += _draw(rehearsal, [job.request for job in images.missing()], images.batch_size)
    if measurement := job.callbacks.fidelity.measurement:
        requests = [probe.request for probe in measurement.probes]
        missing = [job.request for job in measurement.base_store(job.trainer).missing(requests)]
        work += _draw(rehearsal, missing, measurement.batch_size)
    instances = sum(len(concept.instances) for concept in job.data.images())
    if job.data.cache_latents:
        count = instances + sum(images.count for images in job.data.class_images())
        views = count * len(training_views(job.data.crop, job.data.flip, job.data.seed))
        at_once = min(views, images_at_once(job.data.resolution_px))
        work.append((views / at_once, rehearsal.encode(at_once)))
    if job.callbacks.fidelity.losses_every_n_steps:
        work.append((_loss_sets(job), rehearsal.encode(min(IMAGES, instances))))
    return work


def _loss_sets(job: Job) -> int:
    """Sets of images with fixed-noise losses: instance, held out, class."""
    return 1 + any(concept.held_out_dir for concept in job.data.concepts) + (job.data.prior == "images")


def _draw(rehearsal: Rehearsal, requests: Sequence[Request], batch_size: int, times: int = 1) -> list[Repeated]:
    """The work of drawing these images so many times, in batches."""
    if not requests:
        return []
    batch = requests[:batch_size]
    return [(times * len(requests) / len(batch), rehearsal.draw(batch))]
