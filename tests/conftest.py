import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import single_files, tiny

from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.cli.main import main
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # LightningCLI's own calls; the bound in setup.cfg covers them
os.environ["LIGHTNING_DREAMBOOTH_TRUST"] = "helpers"  # its callbacks disturb or record runs
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, and what the tests start would ignore it too
torch.set_num_threads(1)  # the models are so small that a second thread only waits


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--times", type=int, default=2, help="how often runs are killed and stopped at random moments")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that a second process tests all others beside it."""
    items.sort(key=lambda item: item.path.name != "test_example.py")


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.stable_diffusion(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> dict[str, Path]:
    """Folders of models in different layouts, by name."""
    made = tmp_path_factory.mktemp("layouts")
    return {
        "1.x": single_files.small(made / "one", 1), "2.x": single_files.small(made / "two", 2),
        "toonbase": single_files.TOONBASE, "tiny": tiny_sd,
    }  # fmt: skip


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.clip(tmp_path_factory.mktemp("encoder") / "small")


@pytest.fixture(scope="session")
def small_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.dino(tmp_path_factory.mktemp("encoder") / "vit")


@pytest.fixture
def model(tiny_sd: Path) -> StableDiffusion:
    return StableDiffusion.load(ModelFiles(str(tiny_sd)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with five images in `girl/`."""
    monkeypatch.chdir(tmp_path)
    tiny.images(tmp_path / "girl", 5)
    return tmp_path


@pytest.fixture
def run(here: Path, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DreamBoothCLI]:
    """Runs a verb through the command line on the tiny model, with settings that take a second."""
    small = {
        "model.pretrained": tiny_sd, "data.instance_data_dir": "girl", "data.instance_prompt": "a photo of sks girl",
        "data.class_data_dir": "class", "data.class_prompt": "a photo of a girl", "data.num_class_images": 3,
        "data.class_steps": 2, "samples.steps": 2, "samples.num_images": 1, "trainer.max_steps": 4,
        "trainer.accelerator": "cpu", "trainer.precision": 32, "model.train_text_encoder": True,
        "trainer.enable_progress_bar": False, "trainer.log_every_n_steps": 1,
    }  # fmt: skip

    def run(verb: str = "fit", *words: str, **settings: object) -> DreamBoothCLI:
        values = small | {key.replace("__", "."): value for key, value in settings.items()}
        flags = [f"--{key}={value}" for key, value in values.items() if value is not None]
        monkeypatch.setattr("sys.argv", ["lightning_dreambooth", verb, *words, *flags])
        return main()

    return run


@pytest.fixture
def complaint(run: Callable[..., object], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line in which a run with wrong input ends."""

    def complaint(*words: str, **settings: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(*words, **settings)
        assert stopped.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(lines) == 1
        return lines[0]

    return complaint
