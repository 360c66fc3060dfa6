"""A study's runs: what a fit is called, what is recorded of it, and how a verb is run in a process of its own."""

import fcntl
import hashlib
import json
import platform
import shlex
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

import torch

from lightning_dreambooth.callbacks.checkpointing import EXPORTS
from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.cli.main import PROG, build_job
from lightning_dreambooth.data.dataset import concept_images, data_digests
from lightning_dreambooth.errors import InputError, TrainingError
from lightning_dreambooth.evaluation.dreambench import Subject
from lightning_dreambooth.evaluation.tables import read_json, write_json
from lightning_dreambooth.files import sha256
from lightning_dreambooth.saving.runs import RUNS
from lightning_dreambooth.saving.states import STATES, newest_first, remove
from lightning_dreambooth.study.reading import Variant

RECORD = "study.json"  # beside a run: what made it, how long that took, and whether it is done
SECTIONS = ("model", "data", "fidelity", "trainer")  # of a fit's config: what its weights and figures come from
LIBRARIES = (
    "lightning_dreambooth", "torch", "pytorch-lightning", "diffusers", "transformers", "open-clip-torch", "timm",
)  # fmt: skip


class Fitted(NamedTuple):
    """A fit of a variant with a seed: the folder it lies in, named by all that decides it."""

    variant: str
    seed: int
    name: str
    words: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return RUNS / self.name

    @property
    def command(self) -> str:
        """The fit as somebody would type it, under a name of its own."""
        return f"{PROG} fit {shlex.join(self.words)}"

    @property
    def export(self) -> Path:
        """The pipeline of the last step."""
        return max((self.folder / EXPORTS).glob("step-*"))

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the run, nothing before it has begun."""
        return read_record(self.folder)


def read_record(run: Path) -> dict[str, Any]:
    """What a study has recorded of a run."""
    file = run / RECORD
    return read_json(file) if file.is_file() else {}


def finished(run: Path) -> bool:
    """Whether a study has done this run to its end."""
    return bool(read_record(run).get("finished"))


def digest(about: Any) -> str:
    """Plain values => a word that names them."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:8]


def fit_of(study: str, variant: Variant, seed: int, job: DreamBoothCLI) -> Fitted:
    """A fit, named by its variant, its seed and a digest of config, base model, concepts and their images."""
    config, data = job.config["fit"].as_dict(), job.datamodule
    about: dict[str, Any] = {section: dict(config[section]) for section in SECTIONS}
    for section in ("model", "data"):
        del about[section]["seed"]  # the fit's own, which the name says
    about |= {
        "dtype": config["checkpoint"]["dtype"], "base": data.files.fingerprint,
        "concepts": [asdict(concept) for concept in data.concepts],
        "learned": data_digests(concept_images(data.concepts, 0)),
    }  # fmt: skip
    return Fitted(variant.name, seed, f"{study}/{variant.name}-seed{seed}-{digest(about)}", tuple(variant.words(seed)))


def run_verb(verb: str, words: Sequence[str], lock: int) -> None:
    """Runs a verb in a process of its own, which keeps a lock for as long as it lives.

    Raises:
        InputError: if it ends with wrong input; its own line has said of what.
        TrainingError: if it fails.
    """
    command = [sys.executable, "-m", "lightning_dreambooth", verb, *words]
    # In a session of its own, so that a signal from the terminal reaches it once, through here.
    process = subprocess.Popen(command, start_new_session=True, pass_fds=[lock])
    try:
        while process.poll() is None:
            time.sleep(0.1)  # and not wait(), which nothing that Ray does to a task would wake
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    code, said = process.returncode, f"{PROG} {verb} {shlex.join(words)}"
    if code == 2:
        raise InputError(f"the study ends here, for a reason given above, at: {said}")
    if code:
        raise TrainingError(f"the study ends here, with exit code {code}, at: {said}")


@contextmanager
def locked(run: Path) -> Iterator[int]:
    """Lets one process at a time work on a run, also one that outlives the study that began it."""
    file = run.with_name(f".{run.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that works on {run}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()


def recorded(run: Path, verb: str, words: Sequence[str]) -> None:
    """Runs a verb that writes to a folder, unless it has done so, and records what it took.

    The states of a fit are not needed any longer when it is done.
    """
    with locked(run) as lock:
        if finished(run):
            return
        before, began = read_record(run).get("seconds", 0.0), time.monotonic()
        about = {"command": f"{PROG} {verb} {shlex.join(words)}", "host": platform.node(), "finished": False}
        about |= {"versions": {library: version(library) for library in LIBRARIES}}
        try:
            run_verb(verb, words, lock)
            remove(newest_first(run / STATES))
            about["finished"] = True
        finally:
            if run.is_dir():
                write_json(run / RECORD, about | {"seconds": before + time.monotonic() - began})


def do_class_images(words: Sequence[str]) -> None:
    """Draws the class images that fits share, with the seed of the first."""
    job = build_job(list(words))
    data = job.datamodule
    data.trainer = job.trainer
    with job.trainer.precision_plugin.forward_context():
        data.draw_class_images()
    torch.cuda.empty_cache()  # fits in processes of their own follow


def do_fit(fit: Fitted) -> None:
    """Fits, or goes on."""
    recorded(fit.folder, "fit", [*fit.words, f"--name={fit.name}", "--ckpt_path=last"])


def benchmark_folder(fit: Fitted, job: DreamBoothCLI, subject: Subject) -> Path:
    """Where the paper's protocol for a fit lies, named by how it is drawn and measured."""
    about = [job.config["fit"].as_dict()["benchmark"], subject.prompts, [sha256(path) for path in subject.images]]
    return RUNS / f"{fit.name}-test-{digest(about)}"


def do_test(fit: Fitted, run: Path, words: Sequence[str]) -> None:
    """Runs the paper's protocol for a fit."""
    model = [f"--model.pretrained={fit.export}", "--model.vae=null", "--model.revision=null", "--model.variant=null"]
    recorded(run, "test", [*fit.words, *model, f"--name={run.relative_to(RUNS)}", *words])
