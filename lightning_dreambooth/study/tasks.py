"""The parts of a study: fits, drawings and tests. Each finds its work done when it is asked again."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.diffusion.sampling import Request
from lightning_dreambooth.evaluation.dreambench import Subject, read_subject
from lightning_dreambooth.evaluation.prompts import TRAINING_ROW, unet_evaluations
from lightning_dreambooth.study.cost import cost_of_fit, cost_of_test
from lightning_dreambooth.study.drawing import RenderSettings, draw, images_of
from lightning_dreambooth.study.fits import Fitted, benchmark_folder, do_class_images, do_fit, do_test, finished
from lightning_dreambooth.study.reading import Study


class Task(NamedTuple):
    """A piece of a study that one process does by itself.

    Attributes:
        title: What is done.
        variant: Name of the variant that it is of.
        steps: Training steps that it takes.
        rows: Rows that are trained in each.
        evaluations: UNet evaluations that it takes besides.
        do: Does it, or what is missing of it.
        is_done: Whether nothing is missing.
        needs: Places of the parts that come before.
    """

    title: str
    variant: str
    steps: int
    rows: int
    evaluations: int
    do: Callable[[], None]
    is_done: Callable[[], bool]
    needs: tuple[int, ...] = ()


def cost_of(part: Task) -> int:
    """What a part takes, in UNet evaluations."""
    return part.steps * part.rows * TRAINING_ROW + part.evaluations


def requests_of(study: Study, variant: str) -> list[Request]:
    """What a fit of a variant draws, for all figures."""
    rows = [row for figure in study.figures.values() for row in figure.rows if row.variant == variant]
    return list(dict.fromkeys(request for row in rows for request in row.requests))


def do_draw(fit: Fitted, requests: Sequence[Request], brush: RenderSettings) -> None:
    """Draws what is missing of a fit's images."""
    draw(fit.export, requests, brush)


def are_drawn(fit: Fitted, requests: Sequence[Request], brush: RenderSettings) -> bool:
    """Whether the images of a fit are there."""
    return finished(fit.folder) and all(path.is_file() for path in images_of(fit.export, requests, brush))


def subject_of(study: Study, fit: Fitted) -> Subject | None:
    """The subject of a dreambench study that a fit has learned."""
    return None if study.spec.dreambench is None else read_subject(Path(study.spec.dreambench.folder), fit.variant)


def plan(
    study: Study, jobs: Mapping[str, DreamBoothCLI], fits: Sequence[Fitted], brushes: Mapping[str, RenderSettings]
) -> list[Task]:
    """The parts of a study, each after those that it needs."""
    parts, classes = class_parts(study, jobs)
    for fit in fits:
        job, title = jobs[fit.variant], f"{fit.variant}, seed {fit.seed}"
        do, is_done, cost = partial(do_fit, fit), partial(finished, fit.folder), cost_of_fit(job)
        needs = tuple(classes[folder] for folder in class_folders(job))
        parts.append(Task(f"fit {title}", fit.variant, *cost, do, is_done, needs))
        fitted = len(parts) - 1
        if requests := requests_of(study, fit.variant):
            drawn = (fit, requests, brushes[fit.variant])
            do, is_done, evaluations = partial(do_draw, *drawn), partial(are_drawn, *drawn), evaluations_of(requests)
            parts.append(Task(f"draw {title}", fit.variant, 0, 0, evaluations, do, is_done, (fitted,)))
        if (subject := subject_of(study, fit)) and study.spec.dreambench:
            run = benchmark_folder(fit, job, subject)
            words = [f"--benchmark.folder={study.spec.dreambench.folder}", f"--benchmark.subject={subject.name}"]
            do, is_done = partial(do_test, fit, run, words), partial(finished, run)
            evaluations = cost_of_test(job, len(subject.prompts))
            parts.append(Task(f"test {title}", fit.variant, 0, 0, evaluations, do, is_done, (fitted,)))
    return parts


def class_parts(study: Study, jobs: Mapping[str, DreamBoothCLI]) -> tuple[list[Task], dict[str, int]]:
    """A part for each set of class images that fits share, and its place by folder: the first seed decides them."""
    parts: list[Task] = []
    places: dict[str, int] = {}
    for name, job in jobs.items():
        folders, data = class_folders(job), job.datamodule
        if not folders or all(folder in places for folder in folders):
            continue
        places |= {folder: len(parts) for folder in folders if folder not in places}
        do = partial(do_class_images, study.variants[name].words(study.spec.seeds[0]))
        evaluations = evaluations_of([request for _, request in data.missing_class_images()])
        is_done = partial(_nothing, data.missing_class_images)
        parts.append(Task(f"class images of {name}", name, 0, 0, evaluations, do, is_done))
    return parts, places


def class_folders(job: DreamBoothCLI) -> list[str]:
    """Where the class images lie that a fit trains on."""
    data = job.datamodule
    return [str(concept.class_data_dir) for concept in data.concepts] if data.with_prior else []


def evaluations_of(requests: Sequence[Request]) -> int:
    """How often the UNet runs for images."""
    return sum(map(unet_evaluations, requests))


def _nothing(missing: Callable[[], Sequence[object]]) -> bool:
    return not missing()
