"""`fit` killed at random moments and started again each time ends as if it had never been killed.

`pytest tests/test_kill.py --times 20` kills twenty times; half of the kills wait for a file that is being written.
"""

import os
import random
import signal
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest
from helpers import forked, tiny
from helpers.comparison import assert_same, left_behind
from helpers.forked import WORDS

pytestmark = pytest.mark.slow


def parts(folder: Path) -> list[Path]:
    # os.walk, for rglob stumbles over a folder that is renamed while it looks.
    paths = [Path(where, name) for where, folders, files in os.walk(folder) for name in (*folders, *files)]
    return [path for path in paths if fnmatch(path.name, ".*.part") and "tiny" not in path.parts]


def kill(run: forked.Run, folder: Path, chance: random.Random, longest: float, writing: bool) -> bool:
    """SIGKILL at a random moment, or as soon as a randomly chosen write is under way; whether it was."""
    began, skip = time.monotonic(), chance.randrange(30)
    wait = chance.uniform(0, longest)
    caught = False
    while run.process.is_alive() and not caught and (writing or time.monotonic() - began < wait):
        if writing and parts(folder):
            skip -= 1
            caught = skip < 0
    run.send(signal.SIGKILL)
    run.wait()
    return caught


@pytest.mark.parametrize("adapters", [[], ["--model.lora.rank=4"]], ids=["all weights", "lora"])
def test_a_killed_run_ends_as_one_that_was_never_killed(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, adapters: list[str]
) -> None:
    kills, seed = pytestconfig.getoption("--times"), random.randrange(2**32)
    chance = random.Random(seed)
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    assert forked.start(tmp_path, ["fit", *WORDS, *adapters, "--name=warm"]).wait() == 0
    began = time.monotonic()
    assert forked.start(tmp_path, ["fit", *WORDS, *adapters, "--name=whole"]).wait() == 0
    longest = time.monotonic() - began
    for path in (*(tmp_path / "class").iterdir(), *(tmp_path / "cache").iterdir()):
        path.unlink()

    elsewhere = {"TMPDIR": "/dev/shm"} if Path("/dev/shm").is_dir() else {}  # another file system than the run's
    words = ["fit", *WORDS, *adapters, "--name=killed", "--ckpt_path=last"]
    happened = {"killed": 0, "while writing": 0, "ended before": 0}
    while happened["killed"] < kills:
        run = forked.start(tmp_path, words, elsewhere if chance.random() < 0.5 else {})
        caught = kill(run, tmp_path, chance, longest, writing=happened["killed"] % 2 == 0)
        happened["killed"] += run.process.exitcode == -signal.SIGKILL
        happened["while writing"] += caught
        if run.process.exitcode == 0:  # too quick for us: the next one begins anew
            happened["ended before"] += 1
            monkeypatch.chdir(tmp_path)
            assert_same(left_behind("whole"), left_behind("killed"))
            for path in sorted((tmp_path / "runs/killed").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        else:
            assert run.process.exitcode == -signal.SIGKILL, run.printed()
    run = forked.start(tmp_path, words)
    assert run.wait() == 0, run.printed()
    print(happened, "seed", seed)
    assert parts(tmp_path) == []
    monkeypatch.chdir(tmp_path)
    assert_same(left_behind("whole"), left_behind("killed"))
    assert {path.name for path in Path("class").iterdir()} >= {"00000.png", "00001.png", "00002.png"}
