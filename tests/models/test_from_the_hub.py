"""What is read from the hub: configs first, and of weights only those of a model that can be trained."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import hub
from helpers.layouts import ACCEPTED, REFUSED, WEIGHTS, edit
from huggingface_hub import constants

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.model_files import ModelFiles, locate
from lightning_dreambooth.models.stable_diffusion import StableDiffusion


@pytest.fixture
def folder(tiny_sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd, tmp_path / "hub/owner/name"))


@pytest.fixture
def downloaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that a hub with the model `owner/name`, that of `folder`, has sent."""
    with hub.serve(tmp_path / "hub", tmp_path / "cache", monkeypatch) as files:
        yield files


def weights_of(files: list[str]) -> list[str]:
    return sorted(file for file in files if not file.endswith((".json", ".txt")))


@pytest.mark.parametrize(
    "kind", [kind if n < 10 else pytest.param(kind, marks=pytest.mark.slow) for n, kind in enumerate(REFUSED)]
)
def test_no_weights_are_downloaded_of_a_model_that_is_refused(folder: Path, downloaded: list[str], kind: str) -> None:
    change, message = REFUSED[kind]
    change(folder)
    with pytest.raises(InputError, match=message):
        locate("owner/name")
    assert weights_of(downloaded) == []


@pytest.mark.parametrize("kind", [kind for kind in ACCEPTED if kind != "links into the hub's cache"])
def test_only_the_weights_that_are_read_are_downloaded_from_the_hub(
    folder: Path, downloaded: list[str], kind: str
) -> None:
    ACCEPTED[kind](folder)
    variant = "fp16" if "fp16" in kind else None
    files = ModelFiles("owner/name", variant=variant)
    read = [file for part in ("unet", "text_encoder", "vae") for file in files.weights(part).files]
    assert weights_of(downloaded) == sorted(file.relative_to(files.folder).as_posix() for file in read)
    assert files.fingerprint == ModelFiles(str(folder), variant=variant).fingerprint


def test_a_model_that_was_downloaded_is_found_without_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub.serve(tmp_path / "hub", tmp_path / "cache", monkeypatch):
        first = locate("owner/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("owner/name") == first
    (first / WEIGHTS[1]).unlink()
    with pytest.raises(InputError, match="owner/name"):
        locate("owner/name")


@pytest.mark.parametrize("channels", [4, 16])
def test_a_vae_of_the_hub_is_checked_before_its_weights_are_downloaded(
    folder: Path, downloaded: list[str], tiny_sd: Path, channels: int
) -> None:
    for file in list((folder / "vae").iterdir()):
        file.rename(folder / file.name)
    edit("config.json", latent_channels=channels)(folder)
    files = ModelFiles(str(tiny_sd), vae="owner/name")
    if channels == 4:
        assert StableDiffusion.load(files)
        assert weights_of(downloaded) == ["diffusion_pytorch_model.safetensors"]
    else:
        with pytest.raises(InputError, match="its VAE has 16"):
            _ = files.vae_folder
        assert weights_of(downloaded) == []


def test_a_model_that_the_hub_does_not_have_is_refused(downloaded: list[str]) -> None:
    with pytest.raises(InputError, match="owner/nobody is neither a local folder nor a model"):
        locate("owner/nobody")
    assert downloaded == []
