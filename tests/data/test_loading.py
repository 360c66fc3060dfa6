"""An error in a loader's process, or in a run that has them, ends the run within seconds and in one line."""

import time
from pathlib import Path

import pytest
from helpers import forked, tiny
from helpers.forked import WORDS

from lightning_dreambooth.saving.order import newest_first

SECONDS = 30  # on a busy machine; a quiet one takes two, or fifteen for a worker that does not answer

FAULTS = {
    "every image is broken": (2, "cannot be read as an image (cannot identify image file"),
    "every image is gone": (2, "cannot be read as an image ([Errno 2] No such file or directory"),
    "a worker is killed": (1, "a loader process has died (DataLoader worker"),
    "the run itself cannot go on": (1, "error: the disk is full"),
    "a worker is stopped": (1, "error: the disk is full"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "workers"), [("every image is broken", 0), *((how, 2) for how in FAULTS)])
def test_a_run_with_loader_processes_ends_after_an_error(tmp_path: Path, how: str, workers: int) -> None:
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    words = [*WORDS, "--name=run", f"--data.num_workers={workers}", "--data.cache_latents=false"]
    words += ["--model.prior_weight=0", "--trainer.max_steps=1000", "--samples.every_n_steps=1000"]
    words += ["--trainer.callbacks+=helpers.probes.Spoiler", f"--trainer.callbacks.how={how}"]
    run = forked.start(tmp_path, ["fit", *words])
    forked.until(run, (tmp_path / "spoiled").is_file)
    began = time.monotonic()
    code, message = FAULTS[how]
    assert run.wait(SECONDS) == code, run.printed()
    assert time.monotonic() - began < SECONDS
    printed = run.printed()
    assert printed.count("error: ") == 1
    assert message in printed
    assert "Traceback" not in printed
    newest = newest_first(tmp_path / "runs/run/states")[0]
    assert newest.step >= 2  # what was saved stays
