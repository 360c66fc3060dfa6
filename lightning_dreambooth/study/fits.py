"""A study's runs: what a fit is called, what is recorded of it, and how a verb is run in a process of its own."""

import hashlib
import json
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from lightning_dreambooth.cli import PROG, DreamBoothCLI
from lightning_dreambooth.dataset import digests, listed
from lightning_dreambooth.errors import InputError, Stopped, TrainingError
from lightning_dreambooth.keep import EXPORTS
from lightning_dreambooth.processes import LOCK
from lightning_dreambooth.report import read_json, write_json
from lightning_dreambooth.runs import RUNS
from lightning_dreambooth.states import STATES, newest_first, remove
from lightning_dreambooth.study.spec import Variant

RECORD = "study.json"  # beside a run: what made it, how long that took, and whether it is done
SECTIONS = ("model", "data", "fidelity", "trainer")  # of a fit's config: what its weights and figures come from
LIBRARIES = ("torch", "pytorch-lightning", "diffusers", "transformers", "open-clip-torch", "timm")


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
        """The fit as somebody would type it."""
        return f"{PROG} fit {shlex.join(self.words)} --name={self.name} --ckpt_path=last"

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


def fit_of(study: str, variant: Variant, seed: int, front: DreamBoothCLI) -> Fitted:
    """A fit, named by its variant, its seed and a digest of config, base model and pictures."""
    config = front.config["fit"].as_dict()
    sections = {name: {key: value for key, value in config[name].items() if key != "seed"} for name in SECTIONS}
    about = sections | {
        "seed": seed, "base": front.datamodule.files.fingerprint,
        "learned": digests(listed(front.datamodule.concepts, 0)),
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:8]
    name = f"{study}/{variant.name}-seed{seed}-{digest}"
    return Fitted(variant.name, seed, name, tuple(variant.words(seed)))


def run_verb(verb: str, words: Sequence[str]) -> None:
    """Runs a verb in a process of its own.

    Raises:
        InputError: if it ends with wrong input; its own line has said of what.
        TrainingError: if it fails.
    """
    command = [sys.executable, "-m", "lightning_dreambooth", verb, *words]
    # In a session of its own, so that a signal from the terminal reaches it once, through here.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    said = f"{PROG} {verb} {shlex.join(words)}"
    if code == 2:
        raise InputError(f"the study ends here, for a reason given above, at: {said}")
    if code > 128:
        raise Stopped(code - 128, f"stopped, and so is the study, at: {said}")
    if code:
        raise TrainingError(f"the study ends here, with exit code {code}, at: {said}")


def recorded(run: Path, verb: str, words: Sequence[str]) -> None:
    """Runs a verb that writes to a folder, unless it has done so, and records what it took."""
    if finished(run):
        return
    if (run / LOCK).is_file():  # the fit of a study that was killed may still go on by itself
        with FileLock(run / LOCK):
            pass
    before, began = read_record(run).get("seconds", 0.0), time.monotonic()
    about = {"command": f"{PROG} {verb} {shlex.join(words)}", "host": platform.node(), "finished": False}
    about |= {"versions": {library: version(library) for library in LIBRARIES}}
    try:
        run_verb(verb, words)
        about["finished"] = True
    finally:
        if run.is_dir():
            write_json(run / RECORD, about | {"seconds": before + time.monotonic() - began})


def do_fit(fit: Fitted) -> None:
    """Fits, or goes on; its state is not needed any longer when it is done."""
    recorded(fit.folder, "fit", [*fit.words, f"--name={fit.name}", "--ckpt_path=last"])
    remove(newest_first(fit.folder / STATES))


def test_folder(fit: Fitted) -> Path:
    """Where the paper's protocol for a fit lies."""
    return RUNS / f"{fit.name}-test"


def do_test(fit: Fitted, words: Sequence[str]) -> None:
    """Runs the paper's protocol for a fit."""
    model = [f"--model.pretrained={fit.export}", "--model.vae=null", "--model.revision=null", "--model.variant=null"]
    name = str(test_folder(fit).relative_to(RUNS))
    recorded(test_folder(fit), "test", [*fit.words, *model, f"--name={name}", *words])


