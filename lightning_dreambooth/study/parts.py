"""The parts of a study: fits, drawings and tests. Each finds its work done when it is asked again."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lightning_dreambooth.cli import DreamBoothCLI
from lightning_dreambooth.dreambench import read_subject
from lightning_dreambooth.protocol import TRAINING_ROW, unet_evaluations
from lightning_dreambooth.sampling import Request
from lightning_dreambooth.study.cost import cost_of_fit, cost_of_test
from lightning_dreambooth.study.drawing import Brush, draw, pictures_of
from lightning_dreambooth.study.fits import Fitted, do_fit, do_test, finished, test_folder
from lightning_dreambooth.study.spec import Study


class Part(NamedTuple):
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


def cost_of(part: Part) -> int:
    """What a part takes, in UNet evaluations."""
    return part.steps * part.rows * TRAINING_ROW + part.evaluations


def requests_of(study: Study, variant: str) -> list[Request]:
    """What a fit of a variant draws, for all figures."""
    rows = [row for figure in study.figures.values() for row in figure.rows if row.variant == variant]
    return list(dict.fromkeys(request for row in rows for request in row.requests))


def do_draw(fit: Fitted, requests: Sequence[Request], brush: Brush) -> None:
    """Draws what is missing of a fit's pictures."""
    draw(fit.export, requests, brush)


def are_drawn(fit: Fitted, requests: Sequence[Request], brush: Brush) -> bool:
    """Whether the pictures of a fit are there."""
    return finished(fit.folder) and all(path.is_file() for path in pictures_of(fit.export, requests, brush))


def plan(
    study: Study, fronts: Mapping[str, DreamBoothCLI], fits: Sequence[Fitted], brushes: Mapping[str, Brush]
) -> list[Part]:
    """The parts of a study, each after those that it needs."""
    parts: list[Part] = []
    for fit in fits:
        steps, rows, evaluations = cost_of_fit(fronts[fit.variant])
        title = f"{fit.variant}, seed {fit.seed}"
        is_done = partial(finished, fit.folder)
        parts.append(Part(f"fit {title}", fit.variant, steps, rows, evaluations, partial(do_fit, fit), is_done))
        fitted = len(parts) - 1
        if requests := requests_of(study, fit.variant):
            drawn = (fit, requests, brushes[fit.variant])
            do, is_done = partial(do_draw, *drawn), partial(are_drawn, *drawn)
            cost = sum(map(unet_evaluations, requests))
            parts.append(Part(f"draw {title}", fit.variant, 0, 0, cost, do, is_done, (fitted,)))
        if study.spec.dreambench is not None:
            subject = fit.variant.split(",")[0]
            words = [f"--benchmark.folder={study.spec.dreambench.folder}", f"--benchmark.subject={subject}"]
            do, is_done = partial(do_test, fit, words), partial(finished, test_folder(fit))
            prompts = read_subject(Path(study.spec.dreambench.folder), subject).prompts
            cost = cost_of_test(fronts[fit.variant], len(prompts))
            parts.append(Part(f"test {title}", fit.variant, 0, 0, cost, do, is_done, (fitted,)))
    return parts
