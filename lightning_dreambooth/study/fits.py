"""Fits of a study: their names, their records, and verbs in separate processes."""

import fcntl
import hashlib
import json
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from lightning_dreambooth.cli.job import Job
from lightning_dreambooth.cli.main import PROG
from lightning_dreambooth.data.training_images import concept_images, data_digests
from lightning_dreambooth.errors import InputError, TrainingError
from lightning_dreambooth.evaluation.dreambench import Subject
from lightning_dreambooth.evaluation.tables import read_json, write_json
from lightning_dreambooth.files import sha256
from lightning_dreambooth.saving.export import lora_name
from lightning_dreambooth.saving.order import EXPORTS, STATES, newest_first
from lightning_dreambooth.saving.runs import RUNS
from lightning_dreambooth.study.variants import Variant

RECORD = "study.json"  # in a run's folder: its command, its time, and whether it is finished
SECTIONS = ("model", "data", "fidelity", "trainer")  # sections of a config that decide weights and metrics
LIBRARIES = (
    "lightning_dreambooth", "torch", "pytorch-lightning", "diffusers", "transformers", "open-clip-torch", "timm",
)  # fmt: skip


class Fit(NamedTuple):
    """A fit of a variant with a seed; its name holds a digest of everything that decides it."""

    variant: str
    seed: int
    name: str
    argv: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return RUNS / self.name

    @property
    def command(self) -> str:
        """The command of an equal fit outside of the study."""
        return f"{PROG} fit {shlex.join(self.argv)}"

    @property
    def export(self) -> Path:
        """Folder of the export of the last step."""
        return newest_first(self.folder / EXPORTS)[0].path

    @property
    def record(self) -> dict[str, Any]:
        """The record of the run; empty before it starts."""
        return read_record(self.folder)


def read_record(run: Path) -> dict[str, Any]:
    """The record of a run; empty without one."""
    file = run / RECORD
    return read_json(file) if file.is_file() else {}


def finished(run: Path) -> bool:
    """Whether a study has finished this run."""
    return bool(read_record(run).get("finished"))


def digest(values: Any) -> str:
    """Digest of plain values, 8 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


def build_fit(study: str, variant: Variant, seed: int, job: Job) -> Fit:
    """A fit, named by its variant, its seed and a digest of config, base model, concepts and their images."""
    decided_by: dict[str, Any] = {section: dict(job.config[section]) for section in SECTIONS}
    del decided_by["model"]["seed"]  # part of the name already
    decided_by |= {
        "dtype": job.config["checkpoint"]["dtype"],
        "base": job.module.tuned_files.fingerprint,
        "concepts": [asdict(concept) for concept in job.data.concepts],
        "data_digests": data_digests(concept_images(job.data.concepts, 0), job.data.masked_loss is not None),
    }
    name = f"{study}/{variant.name}-seed{seed}-{digest(decided_by)}"
    return Fit(variant.name, seed, name, tuple(variant.argv(seed)))


def run_verb(verb: str, argv: Sequence[str], lock: int) -> None:
    """Runs a verb in a separate process, which inherits a lock (a file descriptor) and holds it while it lives.

    Raises:
        InputError: if it ends with wrong input, which it has printed.
        TrainingError: if it fails.
    """
    command = [sys.executable, "-m", "lightning_dreambooth", verb, *argv]
    # In a separate session, so that a signal from the terminal reaches it once, through this process.
    process = subprocess.Popen(command, start_new_session=True, pass_fds=[lock])
    try:
        while process.poll() is None:
            time.sleep(0.1)  # not wait(), which Ray cannot interrupt when it cancels a task
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    code, typed = process.returncode, f"{PROG} {verb} {shlex.join(argv)}"
    if code == 2:
        raise InputError(f"the study ends here, for the reason given above, at: {typed}")
    if code:
        raise TrainingError(f"the study ends here, with exit code {code}, at: {typed}")


@contextmanager
def locked(run: Path) -> Iterator[int]:
    """Lets one process at a time work on a run, even a child that outlives the study that started it.

    The lock is fcntl's and not filelock's, because a child must inherit it as an open file.
    """
    file = run.with_name(f".{run.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that works on {run}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def run_and_record(run: Path, verb: str, argv: Sequence[str]) -> None:
    """Runs a verb that writes to a folder, unless it has finished before, and records its command and its time.

    The states of a fit are removed when it has finished.
    """
    with locked(run) as lock:
        if finished(run):
            return
        before, began = read_record(run).get("seconds", 0.0), time.monotonic()
        record = {"command": f"{PROG} {verb} {shlex.join(argv)}", "host": platform.node(), "finished": False}
        record |= {"versions": {library: version(library) for library in LIBRARIES}}
        try:
            run_verb(verb, argv, lock)
            shutil.rmtree(run / STATES, ignore_errors=True)
            record["finished"] = True
        finally:
            if run.is_dir():
                write_json(run / RECORD, record | {"seconds": before + time.monotonic() - began})


def do_fit(fit: Fit) -> None:
    """Fits, or resumes."""
    run_and_record(fit.folder, "fit", [*fit.argv, f"--name={fit.name}", "--ckpt_path=last"])


def benchmark_folder(fit: Fit, job: Job, subject: Subject) -> Path:
    """Folder of the paper's protocol for a fit, named by everything that decides it."""
    decided_by = [job.config["benchmark"], subject.prompts, [sha256(path) for path in subject.images]]
    return RUNS / f"{fit.name}-test-{digest(decided_by)}"


def do_test(fit: Fit, run: Path, argv: Sequence[str]) -> None:
    """Runs the paper's protocol for a fit."""
    lora = fit.export / lora_name(fit.export)
    folder = {"pretrained": fit.export, "vae": "null", "revision": "null", "variant": "null"}
    model = {"lora": lora} if lora.is_file() else folder
    words = [f"--model.{key}={value}" for key, value in model.items()]
    run_and_record(run, "test", [*fit.argv, *words, f"--name={run.relative_to(RUNS)}", *argv])
