"""`python -m lightning_dreambooth study FILE`: everything that a study file asks for, or what that would take."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from tqdm import tqdm

from lightning_dreambooth.callbacks.signals import GracefulStop
from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.cli.main import PROG, build_job, exit_on_error
from lightning_dreambooth.data.checks import check_lengths
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.dreambench import read_subject
from lightning_dreambooth.files import check_room
from lightning_dreambooth.saving.runs import RUNS
from lightning_dreambooth.study.cost import room_for_fit, seconds_each, what_is_timed
from lightning_dreambooth.study.drawing import RenderSettings
from lightning_dreambooth.study.executors import locally, on_ray
from lightning_dreambooth.study.fits import finished, fit_of
from lightning_dreambooth.study.measuring import measures_with, text_of
from lightning_dreambooth.study.page import write_page
from lightning_dreambooth.study.reading import Study, read_study
from lightning_dreambooth.study.results import gather, write_tables
from lightning_dreambooth.study.tasks import Task, cost_of, plan, requests_of


def main(words: list[str] | None = None) -> None:
    """Runs a study, goes on with it, or tells what it would take."""
    parser = ArgumentParser(
        prog=f"{PROG} study", exit_on_error=False,
        description="Fits every variant of a study, draws and measures its figures, and writes one report. A study "
        "that was stopped goes on; what is done is not done again, what was changed is.",
    )  # fmt: skip
    parser.add_argument("file", type=str, help="the study, such as configs/studies/webtoon.yaml")
    parser.add_argument("--dry_run", action="store_true", help="say what is to be done and how long it takes here")
    parser.add_argument("--executor", choices=["local", "ray"], default="local", help="where its parts are done")
    parser.add_argument("--address", type=str | None, default=None, help="of a Ray cluster; null begins one here")
    with exit_on_error(GracefulStop()):
        given = parser.parse_args(words)
        run_study(Path(given.file), given.dry_run, given.executor, given.address)


def run_study(file: Path, dry_run: bool = False, executor: str = "local", address: str | None = None) -> None:
    """Does what is left of a study and writes its report.

    Raises:
        InputError: if it cannot be done; nothing has been trained then.
    """
    study = read_study(file)
    folder = RUNS / study.name
    first = study.spec.seeds[0]
    jobs = {
        name: build_variant(study, name, first) for name in tqdm(study.variants, "looking at variants", leave=False)
    }
    share_encoders(list(jobs.values()))
    brushes = {name: brush_of(study, job, folder) for name, job in jobs.items()}
    pairs = [(variant, seed) for seed in study.spec.seeds for variant in study.variants.values()]
    fits = [fit_of(study.name, variant, seed, jobs[variant.name]) for variant, seed in pairs]
    parts = plan(study, jobs, fits, brushes)
    left = waiting(parts)
    print(f"{study.name}: {len(fits)} fits, {len(parts)} parts, of which {len(parts) - len(left)} are done")
    check_room(folder, sum(room_for_fit(jobs[fit.variant]) for fit in fits if not finished(fit.folder)))
    if dry_run:
        print(forecast(study, left, jobs, brushes))
        return
    began = time.monotonic()
    do(left, executor, study.spec.resources, address)
    results = gather(study, jobs, fits, brushes)
    tables = write_tables(study, results, folder / "tables")
    write_page(study, results, jobs, tables, folder / "report.html")
    for each in results.verdicts:
        print(f"{each.said}: {each.finding.claim}")
    minutes = (time.monotonic() - began) / 60
    print(
        f"{study.name}: {len(fits)} fits, {len(study.figures)} figures, {len(results.images)} images measured in "
        f"{minutes:.0f} min; report in {folder / 'report.html'}, tables in {folder / 'tables'}"
    )


def build_variant(study: Study, variant: str, seed: int) -> DreamBoothCLI:
    """A variant as `fit` sees it before it begins.

    Raises:
        InputError: if it cannot be fitted, or what it draws cannot be measured.
    """
    try:
        job = build_job(study.variants[variant].words(seed))
        check_images(study, variant, job)
    except InputError as error:
        raise InputError(f"variant {variant}: {error}") from error
    return job


def share_encoders(jobs: Sequence[DreamBoothCLI]) -> None:
    """Keeps each encoder once, however many variants name it."""
    kept: dict[tuple[object, ...], Any] = {}
    for job in jobs:
        for role in ("clip", "dino"):
            encoder = getattr(job.fidelity, role)
            if encoder is not None:
                setattr(job.fidelity, role, kept.setdefault((role, encoder.source, encoder.name), encoder))


def brush_of(study: Study, job: DreamBoothCLI, folder: Path) -> RenderSettings:
    """How the images of a variant are drawn."""
    accelerator = str(job.config["fit"].trainer.accelerator)
    drawn = (study.spec.sampling.batch_size, str(folder / "images"))
    return RenderSettings(job.datamodule.resolution_px, str(job.trainer.precision), accelerator, *drawn)


def check_images(study: Study, variant: str, job: DreamBoothCLI) -> None:
    """Looks at what a variant draws before anything is trained.

    Raises:
        InputError: if it cannot be measured.
    """
    data, fidelity = job.datamodule, job.fidelity
    requests = requests_of(study, variant)
    check_lengths([text for each in requests for text in (each.prompt, each.negative_prompt)], data.tokenizer)
    rows = [row for figure in study.figures.values() for row in figure.rows if row.variant == variant]
    if not (fidelity.clip or fidelity.dino) and (rows or study.spec.dreambench):
        raise InputError("nothing measures its images: give fidelity.clip_model or fidelity.dino")
    measured = measures_with(fidelity.clip, fidelity.dino, study.spec.quality)
    for finding in study.spec.findings:
        if finding.measure not in measured:
            raise InputError(f"the finding {finding.claim!r} is of {finding.measure}, which no encoder here measures")
    if fidelity.clip is not None:
        quality = study.spec.quality
        texts = [text_of(row, data) for row in rows] + ([quality.good, quality.bad] if quality else [])
        if study.spec.dreambench is not None:
            subject = read_subject(Path(study.spec.dreambench.folder), variant)
            texts += [prompt.format("", subject.class_name) for prompt in subject.prompts]
        fidelity.clip.check_texts(texts)


def waiting(parts: Sequence[Task]) -> list[Task]:
    """The parts that are not done, each still after those that it needs."""
    left = [place for place, part in enumerate(parts) if not part.is_done()]
    new = {place: number for number, place in enumerate(left)}
    needs = [tuple(new[need] for need in parts[place].needs if need in new) for place in left]
    return [parts[place]._replace(needs=each) for place, each in zip(left, needs, strict=True)]


def do(parts: Sequence[Task], executor: str, resources: Mapping[str, float], address: str | None) -> None:
    """Does all parts, and says how far that is."""
    began, done = time.monotonic(), [0, 0]
    total = sum(cost_of(part) for part in parts)

    def say(place: int, what: str) -> None:
        minutes = (time.monotonic() - began) / 60
        ahead = f", about {minutes * (total - done[1]) / done[1]:.0f} min to go" if done[1] else ""
        print(f"[{done[0]}/{len(parts)} done, {minutes:.0f} min so far{ahead}] {what}{parts[place].title}", flush=True)

    def ended(place: int) -> None:
        done[0], done[1] = done[0] + 1, done[1] + cost_of(parts[place])
        if executor == "ray":
            say(place, "done: ")

    if executor == "ray":
        on_ray(parts, ended, resources, address)
    else:
        locally(parts, lambda place: say(place, ""), ended)


def forecast(
    study: Study, parts: Sequence[Task], jobs: Mapping[str, DreamBoothCLI], brushes: Mapping[str, RenderSettings]
) -> str:
    """What is left to do, and the time it takes here, from a few timed steps of each variant."""
    each: dict[tuple[object, ...], tuple[float, float]] = {}
    lines = []
    for part in tqdm(parts, "timing steps", leave=False):
        job, batch_size = jobs[part.variant], brushes[part.variant].batch_size
        alike = (*what_is_timed(job), batch_size)
        if alike not in each:
            each[alike] = seconds_each(job, batch_size)
        training, drawing = each[alike]
        seconds = part.steps * training + part.evaluations * drawing
        lines.append((f"  {part.title}: {part.steps} steps, {part.evaluations} UNet evaluations", seconds))
    whole = sum(seconds for _, seconds in lines)
    concept_images = [f"{line}, about {seconds / 60:.1f} min" for line, seconds in lines]
    return "\n".join([*concept_images, f"{study.name}: about {whole / 60:.0f} min in all"])
