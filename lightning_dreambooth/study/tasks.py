"""Tasks of a study in their order: class images, fits, images of figures, and tests."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytorch_lightning as pl
import torch

from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.cli.main import build_job
from lightning_dreambooth.data.image_store import ImageStore
from lightning_dreambooth.diffusion.cost import unet_evaluations
from lightning_dreambooth.diffusion.requests import Request, requests_for
from lightning_dreambooth.evaluation.dreambench import Subject, read_subject
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.saving.export import exported_files
from lightning_dreambooth.study.cost import Cost, fit_cost
from lightning_dreambooth.study.fits import Fit, benchmark_folder, do_fit, do_test, finished
from lightning_dreambooth.study.reading import Study


class Task(NamedTuple):
    """A part of a study that one process does.

    Attributes:
        title: Its title in the progress.
        variant: Name of its variant.
        cost: Its cost.
        do: Does the task, or what is left of it.
        is_done: Returns whether nothing is left of it.
        needs: Places of the tasks that must be done before.
    """

    title: str
    variant: str
    cost: Cost
    do: Callable[[], None]
    is_done: Callable[[], bool]
    needs: tuple[int, ...] = ()


class RenderSettings(NamedTuple):
    """How the images of a variant's figures are drawn, besides their requests, and where they are stored.

    `base` are the files of the base model, which fits that train adapters need.
    """

    resolution_px: int
    precision: str
    accelerator: str
    batch_size: int
    folder: str
    base: ModelFiles

    def files(self, fit: Fit, lora_scale: float) -> ModelFiles:
        """Files of the model of a finished fit."""
        return exported_files(self.base, fit.export, lora_scale)

    def store(self, files: ModelFiles) -> ImageStore:
        """The image store of a model."""
        return ImageStore(Path(self.folder), files.fingerprint, self.resolution_px, self.precision, self.batch_size)


ByScale = Mapping[float, Sequence[Request]]  # images by the factor of what adapters add


def variant_requests(study: Study, variant: str) -> ByScale:
    """The images that each fit of a variant draws for all figures, without repetitions."""
    rows = [row for figure in study.figures.values() for row in figure.rows if row.variant == variant]
    scales = dict.fromkeys(row.lora_scale for row in rows)
    return {
        scale: list(dict.fromkeys(request for row in rows if row.lora_scale == scale for request in row.requests))
        for scale in scales
    }


def image_paths(fit: Fit, requests: ByScale, settings: RenderSettings) -> list[Path]:
    """Paths of the images of a fit, drawn or not."""
    stores = {scale: settings.store(settings.files(fit, scale)) for scale in requests}
    return [stores[scale].path(request) for scale in requests for request in requests[scale]]


def draw_images(fit: Fit, requests: ByScale, settings: RenderSettings) -> None:
    """Draws the missing images of a fit."""
    trainer = pl.Trainer(
        accelerator=settings.accelerator, devices=1, precision=settings.precision, logger=False,  # type: ignore[arg-type]
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    for scale in requests:
        files = settings.files(fit, scale)
        load = cache(partial(_load, files, trainer.strategy.root_device))
        with trainer.precision_plugin.forward_context():
            settings.store(files).fill(requests[scale], load, "images of the figures")
        load.cache_clear()
    torch.cuda.empty_cache()  # for the fits that follow in separate processes


def _load(files: ModelFiles, device: torch.device) -> StableDiffusion:
    return StableDiffusion.load(files).to(device)


def are_drawn(fit: Fit, requests: ByScale, settings: RenderSettings) -> bool:
    """Whether a fit is finished and all its images are drawn."""
    return finished(fit.folder) and all(path.is_file() for path in image_paths(fit, requests, settings))


def draw_class_images(argv: Sequence[str]) -> None:
    """Draws the class images of a variant, with the seed in its arguments."""
    job = build_job(list(argv))
    load = cache(partial(_load, job.data.files, job.trainer.strategy.root_device))
    with job.trainer.precision_plugin.forward_context():
        job.data.draw_class_images(load)
    load.cache_clear()
    torch.cuda.empty_cache()


def dreambench_subject(study: Study, fit: Fit) -> Subject | None:
    """The subject of a fit in a dreambench study; None in other studies."""
    return None if study.spec.dreambench is None else read_subject(Path(study.spec.dreambench.folder), fit.variant)


def plan(
    study: Study, jobs: Mapping[str, Job], fits: Sequence[Fit], settings: Mapping[str, RenderSettings]
) -> list[Task]:
    """The tasks of a study, each after those that it needs."""
    tasks, places = class_image_tasks(study, jobs)
    for fit in fits:
        job = jobs[fit.variant]
        needs = tuple(places[folder] for folder in class_folders(job))
        do, is_done = partial(do_fit, fit), partial(finished, fit.folder)
        tasks.append(Task(f"fit {_title(fit)}", fit.variant, fit_cost(job), do, is_done, needs))
        fit_place = len(tasks) - 1
        if requests := variant_requests(study, fit.variant):
            tasks.append(_drawing_task(fit, requests, settings[fit.variant], fit_place))
        if (subject := dreambench_subject(study, fit)) and study.spec.dreambench:
            tasks.append(_test_task(fit, job, subject, study.spec.dreambench.folder, fit_place))
    return tasks


def _title(fit: Fit) -> str:
    return f"{fit.variant}, seed {fit.seed}"


def _drawing_task(fit: Fit, requests: ByScale, settings: RenderSettings, fit_place: int) -> Task:
    images, cost = (fit, requests, settings), Cost(evaluations=unet_evaluations(chain(*requests.values())))
    do, is_done = partial(draw_images, *images), partial(are_drawn, *images)
    return Task(f"draw {_title(fit)}", fit.variant, cost, do, is_done, (fit_place,))


def _test_task(fit: Fit, job: Job, subject: Subject, folder: str, fit_place: int) -> Task:
    run, benchmark = benchmark_folder(fit, job, subject), job.callbacks.benchmark
    argv = [f"--benchmark.folder={folder}", f"--benchmark.subject={subject.name}"]
    requests = requests_for(subject.prompts, benchmark.seeds, benchmark.settings)
    cost = Cost(evaluations=unet_evaluations(requests))
    do, is_done = partial(do_test, fit, run, argv), partial(finished, run)
    return Task(f"test {_title(fit)}", fit.variant, cost, do, is_done, (fit_place,))


def class_image_tasks(study: Study, jobs: Mapping[str, Job]) -> tuple[list[Task], dict[str, int]]:
    """A task for each set of class images, drawn with the study's first seed, and the place of each task by folder."""
    tasks: list[Task] = []
    places: dict[str, int] = {}
    for name, job in jobs.items():
        folders = class_folders(job)
        if not folders or all(folder in places for folder in folders):
            continue
        places |= {folder: len(tasks) for folder in folders if folder not in places}
        missing = partial(_missing_class_images, job)
        cost = Cost(evaluations=unet_evaluations(missing()))
        do = partial(draw_class_images, study.variants[name].argv(study.spec.seeds[0]))
        tasks.append(Task(f"class images of {name}", name, cost, do, partial(_none, missing)))
    return tasks, places


def class_folders(job: Job) -> list[str]:
    """The folders of the class images that a fit trains on."""
    return [str(class_images.folder) for class_images in job.data.class_images()]


def _missing_class_images(job: Job) -> list[Request]:
    return [missing.request for class_images in job.data.class_images() for missing in class_images.missing()]


def _none(missing: Callable[[], Sequence[object]]) -> bool:
    return not missing()
