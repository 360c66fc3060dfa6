"""SIGINT, SIGTERM and SIGHUP end a run after its step: saved, with the right exit code, without a hang."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import forked, tiny
from helpers.forked import WORDS, until

from lightning_dreambooth.files import is_whole
from lightning_dreambooth.saving.order import newest_first

ROOT = Path(__file__).parent.parent.parent
LONG = [*WORDS, "--trainer.max_steps=1000", "--checkpoint.every_n_steps=1000", "--samples.every_n_steps=1000"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_after_its_step(
    tmp_path: Path, pytestconfig: pytest.Config, number: signal.Signals, processes: int
) -> None:
    chance = random.Random()
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    for time_ in range(pytestconfig.getoption("--times")):
        words = ["fit", *LONG, f"--name=run-{time_}"]
        runs = [forked.start(tmp_path, words)] if processes == 1 else forked.together(tmp_path, words)
        folder = tmp_path / "runs" / f"run-{time_}"
        until(runs[0], (folder / "samples/step-000000.png").is_file)  # training begins
        time.sleep(chance.uniform(0.3, 2))
        told = chance.choice([runs[:1], runs[-1:], runs])
        for run in told:
            run.send(number)
        sent = time.monotonic()
        codes = [run.wait() for run in runs]
        assert codes == [128 + number, 0][:processes], [run.printed() for run in runs]
        assert time.monotonic() - sent < 20
        _, step, newest = newest_first(folder / "states")[0]
        assert is_whole(newest)
        assert f"stopped by {number.name} after step {step}, which is saved" in runs[0].printed()
        assert 0 < step < 1000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_training_ends_a_run_at_once(tmp_path: Path, number: signal.Signals) -> None:
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    run = forked.start(tmp_path, ["fit", *LONG, "--data.num_class_images=1000"])
    until(run, lambda: len(list((tmp_path / "class").glob("*.png"))) > 2)
    run.send(number)
    assert run.wait() == 128 + number, run.printed()
    assert f"stopped by {number.name}; what was written stays" in run.printed()


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGHUP, 2)])
def test_a_signal_to_the_whole_group_ends_a_run_saved_with_all_its_workers(
    tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    words = ["fit", *LONG, "--name=run", "--data.num_workers=2"]
    words += [f"--trainer.devices={processes}", "--trainer.strategy=ddp"] if processes > 1 else []
    output = tmp_path / "output"
    with output.open("w") as file:  # the leader of a group, as in a terminal; its workers are forked
        run = start(tmp_path, words, stdout=file, stderr=file)
    while members(run.pid) < processes * 3:  # each with two workers
        assert run.poll() is None, output.read_text()
        time.sleep(0.01)
    time.sleep(2)
    os.killpg(run.pid, number)
    assert run.wait(20) == 128 + number, output.read_text()
    printed = output.read_text()
    patience = time.monotonic() + 20  # the others follow the first
    while members(run.pid):
        assert time.monotonic() < patience, printed
        time.sleep(0.1)
    assert is_whole(newest_first(tmp_path / "runs/run/states")[0].path)
    assert printed.count(f"stopped by {number.name} after step") == 1
    assert "Traceback" not in printed


def as_nohup() -> None:
    """What nohup does before it starts a program; from here on, no signal can come too early."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def start(folder: Path, words: list[str], **options: Any) -> "subprocess.Popen[str]":
    """Starts the command line as the leader of a group, as a shell does."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lightning_dreambooth", *words]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, text=True, **options)


@pytest.mark.parametrize(
    ("streams", "lines"),
    [(("stdout",), 20), (("stderr",), 1), (("stdout", "stderr"), 1), (("stdout", "stderr"), 20)],
)
def test_a_run_whose_reader_goes_ends_saved(tmp_path: Path, streams: tuple[str, ...], lines: int) -> None:
    """As `2>&1 | head -1` does; the progress bar writes to standard output, class images are counted on the other."""
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    words = [*LONG, "--name=run", "--trainer.enable_progress_bar=true", "--data.num_class_images=20"]
    pipe = os.pipe()
    with (tmp_path / "output").open("w") as elsewhere:
        both = {name: pipe[1] if name in streams else elsewhere for name in ("stdout", "stderr")}
        run = start(tmp_path, ["fit", *words], **both)
    os.close(pipe[1])
    with os.fdopen(pipe[0], newline="\r") as reader:  # the bars return the carriage
        for _ in range(lines):
            reader.readline()
    assert run.wait(60) == 128 + signal.SIGPIPE, (tmp_path / "output").read_text()
    newest = newest_first(tmp_path / "runs/run/states")[0]
    assert is_whole(newest.path)
    printed = (tmp_path / "output").read_text()
    assert "Traceback" not in printed
    assert streams != ("stdout",) or f"stopped by SIGPIPE after step {newest.step}, which is saved" in printed


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    with (tmp_path / "output").open("w") as file:
        run = start(tmp_path, ["fit", *WORDS, "--name=run"], preexec_fn=as_nohup, stdout=file, stderr=file)
    while not (tmp_path / "runs/run/samples/step-000000.png").is_file():
        assert run.poll() is None
        os.killpg(run.pid, signal.SIGHUP)
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGHUP)
    assert run.wait(60) == 0, (tmp_path / "output").read_text()


def test_the_help_of_a_verb_may_be_cut(tmp_path: Path) -> None:
    pipe = os.pipe()
    os.close(pipe[0])
    with (tmp_path / "output").open("w") as file:
        run = start(tmp_path, ["fit", "--help"], stdout=pipe[1], stderr=file)
    os.close(pipe[1])
    assert run.wait(60) == 0
    assert (tmp_path / "output").read_text().strip() in ("", "SIGPIPE: saving at the end of this step")


def test_a_run_that_was_killed_with_its_workers_can_be_resumed_at_once(tmp_path: Path) -> None:
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    words = ["fit", *WORDS, "--name=run", "--data.num_workers=2", "--ckpt_path=last"]
    run = forked.start(tmp_path, words)
    until(run, (tmp_path / "runs/run/states/step-000002.ckpt").is_file)
    run.send(signal.SIGKILL)
    run.wait()
    run = forked.start(tmp_path, words)
    assert run.wait() == 0, run.printed()


def members(group: int) -> int:
    """Number of processes in a group."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, group_, *_ = (process / "stat").read_text().rpartition(")")[2].split()
            count += int(group_) == group and state != "Z"
    return count
