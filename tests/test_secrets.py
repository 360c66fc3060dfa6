"""A token for the hub is in none of the files that a run writes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import tiny
from helpers.forked import WORDS

ROOT = Path(__file__).parent.parent
BY_ENVIRONMENT, BY_LOGIN, BY_CONFIG = (f"hf_canary{place}" for place in ("Environment", "Login", "Config"))


def holding(folder: Path, text: str) -> set[str]:
    """Names of the files that contain a text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name.split(".")[0] + path.suffix for path in files if text.encode() in path.read_bytes()}


@pytest.mark.slow
def test_no_token_is_in_any_file_that_a_run_writes(tmp_path: Path) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    tiny.stable_diffusion(here / "tiny")
    tiny.images(here / "girl", 2)
    home.mkdir()
    (home / "token").write_text(BY_LOGIN)
    (home / "stored_tokens").write_text(f"[mine]\nhf_token = {BY_LOGIN}\n")
    (here / "mine.yaml").write_text(f"# {BY_CONFIG}\nsamples: {{batch_size: 2}}\n")
    environment = os.environ | {
        "HF_HOME": str(home), "HF_TOKEN": BY_ENVIRONMENT, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "lightning_dreambooth", "fit", "--config=mine.yaml", *WORDS]
    ended = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (here / "output").write_text(ended.stdout + ended.stderr)

    # What may be written is found in every kind of file, so that what may not would be.
    assert {"config.yaml", "README.md", "step-000006.ckpt"} <= holding(here, "sks girl")
    assert any(name.startswith("events") for name in holding(here, "sks girl"))
    assert {"class_images.json", "00000.png"} <= holding(here, "a photo of a girl")
    assert holding(here, BY_CONFIG) == {"mine.yaml"}
    assert holding(here, BY_ENVIRONMENT) == holding(here, BY_LOGIN) == set()


def test_a_token_in_the_address_of_a_model_is_refused_with_it(complaint: Callable[..., str]) -> None:
    address = f"https://user:{BY_CONFIG}@huggingface.co/some/model"
    assert "neither a local folder nor a model" in complaint(model__pretrained=address)
    assert holding(Path(), BY_CONFIG) == set()
