"""The command `study FILE`: runs a study, or forecasts what is left of it."""

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from jsonargparse import ArgumentParser
from tqdm import tqdm

from lightning_dreambooth.callbacks.signals import GracefulStop
from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.cli.main import PROG, build_job, exit_on_error
from lightning_dreambooth.data.checks import check_lengths
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.dreambench import read_subject
from lightning_dreambooth.files import check_room
from lightning_dreambooth.saving.runs import RUNS
from lightning_dreambooth.study.cost import room_for_fit, time_job, timing_key
from lightning_dreambooth.study.executors import locally, on_ray
from lightning_dreambooth.study.fits import build_fit, finished
from lightning_dreambooth.study.measuring import measurable, row_text
from lightning_dreambooth.study.page import write_page
from lightning_dreambooth.study.reading import Study, read_study
from lightning_dreambooth.study.results import gather, write_tables
from lightning_dreambooth.study.tasks import RenderSettings, Task, plan, variant_requests


def main(argv: list[str] | None = None) -> None:
    """Runs or resumes a study, or forecasts its time."""
    parser = ArgumentParser(
        prog=f"{PROG} study", exit_on_error=False,
        description="Fits every variant of a study, draws and measures its figures, and writes one report. A study "
        "that was stopped is resumed: finished tasks are skipped, tasks whose settings have changed run again.",
    )  # fmt: skip
    parser.add_argument("file", type=str, help="the study, such as configs/studies/webtoon.yaml")
    parser.add_argument("--dry_run", action="store_true", help="print what is left to do and how long it takes here")
    parser.add_argument("--executor", choices=["local", "ray"], default="local", help="where tasks run")
    parser.add_argument("--address", type=str | None, default=None, help="of a Ray cluster; null starts one here")
    with exit_on_error(GracefulStop()):
        arguments = parser.parse_args(argv)
        run_study(Path(arguments.file), arguments.dry_run, arguments.executor, arguments.address)


def run_study(file: Path, dry_run: bool = False, executor: str = "local", address: str | None = None) -> None:
    """Runs the unfinished tasks of a study and writes its report.

    Raises:
        InputError: if the study cannot run; nothing has been trained then.
    """
    study = read_study(file)
    folder, seeds = RUNS / study.name, study.spec.seeds
    names = tqdm(study.variants, "checking variants", leave=False)
    jobs = {name: build_variant_job(study, name, seeds[0]) for name in names}
    settings = {name: render_settings(study, job, folder) for name, job in jobs.items()}
    pairs = [(variant, seed) for seed in seeds for variant in study.variants.values()]
    fits = [build_fit(study.name, variant, seed, jobs[variant.name]) for variant, seed in pairs]
    tasks = plan(study, jobs, fits, settings)
    remaining = unfinished(tasks)
    print(f"{study.name}: {len(fits)} fits, {len(tasks)} tasks, of which {len(tasks) - len(remaining)} are done")
    check_room(folder, sum(room_for_fit(jobs[fit.variant]) for fit in fits if not finished(fit.folder)))
    if dry_run:
        print(forecast(study, remaining, jobs, settings))
        return
    began = time.monotonic()
    run_tasks(remaining, executor, study.spec.resources, address)
    results = gather(study, jobs, fits, settings)
    tables = write_tables(study, results, folder / "tables")
    write_page(study, results, jobs, tables, folder / "report.html")
    for verdict in results.verdicts:
        print(f"{verdict.verdict}: {verdict.hypothesis.claim}")
    minutes = (time.monotonic() - began) / 60
    print(
        f"{study.name}: {len(fits)} fits, {len(study.figures)} figures, {len(results.images)} images measured in "
        f"{minutes:.0f} min; report in {folder / 'report.html'}, tables in {folder / 'tables'}"
    )


def build_variant_job(study: Study, variant: str, seed: int) -> Job:
    """The job of a variant, checked but not started.

    Raises:
        InputError: if it cannot be fitted, or its images cannot be measured.
    """
    try:
        job = build_job(study.variants[variant].argv(seed))
        check_figures(study, variant, job)
    except InputError as error:
        raise InputError(f"variant {variant}: {error}") from error
    return job


def render_settings(study: Study, job: Job, folder: Path) -> RenderSettings:
    """How the images of a variant are drawn."""
    accelerator, precision = str(job.config["trainer"]["accelerator"]), str(job.trainer.precision)
    batch_size = study.spec.sampling.batch_size
    images = str(folder / "images")
    return RenderSettings(job.data.resolution_px, precision, accelerator, batch_size, images, job.module.files)


def check_figures(study: Study, variant: str, job: Job) -> None:
    """Checks that the images of a variant can be measured, before anything is trained.

    Raises:
        InputError: if they cannot be measured.
    """
    encoders, quality = job.callbacks.fidelity.encoders, study.spec.quality
    by_scale = variant_requests(study, variant)
    requests = list(chain(*by_scale.values()))
    prompts = [prompt for request in requests for prompt in (request.prompt, request.settings.negative_prompt)]
    check_lengths(prompts, job.data.tokenizer)
    if job.module.lora is None and (scaled := [scale for scale in by_scale if scale != 1]):
        raise InputError(f"a figure draws it at lora_scale {scaled[0]:g}, but it trains no adapters; give model.lora")
    rows = [row for figure in study.figures.values() for row in figure.rows if row.variant == variant]
    if not encoders.by_role and (rows or study.spec.dreambench):
        raise InputError("no encoder measures its images: give fidelity.clip_model or fidelity.dino")
    measured = measurable(encoders, quality)
    for hypothesis in study.spec.findings:
        if hypothesis.measure not in measured:
            raise InputError(f"the finding {hypothesis.claim!r} is of {hypothesis.measure}, which no encoder measures")
    if encoders.clip is not None:
        texts = [row_text(row, job.data) for row in rows] + ([quality.good, quality.bad] if quality else [])
        if study.spec.dreambench is not None:
            subject = read_subject(Path(study.spec.dreambench.folder), variant)
            texts += [prompt.format("", subject.class_name) for prompt in subject.prompts]
        encoders.clip.check_texts(texts)


def unfinished(tasks: Sequence[Task]) -> list[Task]:
    """The tasks that are not done, each after those that it needs, with `needs` counted in the new list."""
    places = [place for place, task in enumerate(tasks) if not task.is_done()]
    new_place = {place: number for number, place in enumerate(places)}
    return [
        tasks[place]._replace(needs=tuple(new_place[need] for need in tasks[place].needs if need in new_place))
        for place in places
    ]


def run_tasks(tasks: Sequence[Task], executor: str, resources: Mapping[str, float], address: str | None) -> None:
    """Runs all tasks, and reports the progress."""
    began = time.monotonic()
    total, done = sum(task.cost.total for task in tasks), {"tasks": 0, "cost": 0}

    def report(place: int, prefix: str) -> None:
        minutes = (time.monotonic() - began) / 60
        to_go = f", about {minutes * (total - done['cost']) / done['cost']:.0f} min to go" if done["cost"] else ""
        progress = f"{done['tasks']}/{len(tasks)} done, {minutes:.0f} min so far{to_go}"
        print(f"[{progress}] {prefix}{tasks[place].title}", flush=True)

    def ended(place: int) -> None:
        done["tasks"] += 1
        done["cost"] += tasks[place].cost.total
        if executor == "ray":
            report(place, "done: ")

    if executor == "ray":
        on_ray(tasks, ended, resources, address)
    else:
        locally(tasks, lambda place: report(place, ""), ended)


def forecast(
    study: Study, tasks: Sequence[Task], jobs: Mapping[str, Job], settings: Mapping[str, RenderSettings]
) -> str:
    """The unfinished tasks and the time they take on this machine, from a few timed steps of each variant."""
    timed: dict[tuple[object, ...], tuple[float, float]] = {}
    lines, total_seconds = [], 0.0
    for task in tqdm(tasks, "timing steps", leave=False):
        job, batch_size = jobs[task.variant], settings[task.variant].batch_size
        key = (*timing_key(job), batch_size)
        if key not in timed:
            timed[key] = time_job(job, batch_size)
        training, drawing = timed[key]
        cost, seconds = task.cost, task.cost.steps * training + task.cost.evaluations * drawing
        total_seconds += seconds
        amount = f"{cost.steps} steps, {cost.evaluations} UNet evaluations"
        lines.append(f"  {task.title}: {amount}, about {seconds / 60:.1f} min")
    return "\n".join([*lines, f"{study.name}: about {total_seconds / 60:.0f} min in all"])
