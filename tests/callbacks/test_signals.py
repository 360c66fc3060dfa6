"""SIGINT and SIGTERM end a run after its step: saved, with the right exit code, without a hang."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import forked, tiny
from helpers.forked import WORDS, until

from lightning_dreambooth.files import is_whole
from lightning_dreambooth.saving.states import newest_first

ROOT = Path(__file__).parent.parent.parent
LONG = [*WORDS, "--trainer.max_steps=1000", "--checkpoint.every_n_steps=1000", "--samples.every_n_steps=1000"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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
        newest = newest_first(folder / "states")[0]
        assert is_whole(newest)
        step = int(newest.stem.split("-")[1])
        assert f"stopped by {number.name} after step {step}, which is saved" in runs[0].printed()
        assert 0 < step < 1000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_training_ends_a_run_at_once(tmp_path: Path, number: signal.Signals) -> None:
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    run = forked.start(tmp_path, ["fit", *LONG, "--data.num_class_images=1000"])
    until(run, lambda: len(list((tmp_path / "class").glob("*.png"))) > 2)
    run.send(number)
    assert run.wait() == 128 + number, run.printed()
    assert f"stopped by {number.name}; what was written stays" in run.printed()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_ends_a_run_saved_with_all_its_workers(
    tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    words = ["fit", *LONG, "--name=run", "--data.num_workers=2"]
    words += [f"--trainer.devices={processes}", "--trainer.strategy=ddp"] if processes > 1 else []
    output = tmp_path / "output"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lightning_dreambooth", *words]
    with output.open("w") as file:  # the leader of a group, as in a terminal; its workers are forked
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=file, start_new_session=True)
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
    assert is_whole(newest_first(tmp_path / "runs/run/states")[0])
    assert printed.count(f"stopped by {number.name} after step") == 1
    assert "Traceback" not in printed


def members(group: int) -> int:
    """Number of processes in a group."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, group_, *_ = (process / "stat").read_text().rpartition(")")[2].split()
            count += int(group_) == group and state != "Z"
    return count
