"""The example at full length on the bundled model, measured by the recipe's classifier of renderings."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "checkpoints" / "toonbase" / "recipe"
PROMPTS = {"character": "a photo of sks girl", "class": "a photo of a girl"}

pytestmark = pytest.mark.slow


def run(folder: Path, *words: str) -> str:
    """Runs a verb as a user does; returns its last line."""
    command = [sys.executable, "-m", "lightning_dreambooth", *words]
    # Threads that wait actively would slow down the tests of the other worker.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


def load_classifier() -> ModuleType:
    sys.path.insert(0, str(RECIPE))
    spec = importlib.util.spec_from_file_location("classifier", RECIPE / "classifier.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(RECIPE))
    return module


def load_images(folder: Path, name: str) -> Tensor:
    def read(path: Path) -> Tensor:
        with Image.open(path) as image:
            return pil_to_tensor(image).float() / 255

    model, kind = name.split("-")
    first = 16 * [*PROMPTS].index(kind)
    paths = sorted((folder / "runs" / model).glob("0*.png"))[first : first + 16]
    return torch.stack([read(path) for path in paths])


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the example, and sixteen images of each prompt before and after."""
    folder = tmp_path_factory.mktemp("example")
    (folder / "checkpoints").symlink_to(ROOT / "checkpoints")
    summary = run(folder, "fit")
    export = re.search(r"pipeline in runs/(toon/exports/step-\d{6})$", summary)[1]
    (folder / "tuned").symlink_to(folder / "runs" / export)
    for model, pretrained in {"base": "checkpoints/toonbase", "tuned": f"runs/{export}"}.items():
        run(
            folder, "predict", f"--name={model}", f"--model.pretrained={pretrained}",
            f"--samples.prompts=[{', '.join(PROMPTS.values())}]", "--samples.num_images=16",
            "--samples.guidance_scale=4", "--samples.batch_size=16",
        )  # fmt: skip
    return folder


def test_the_example_learns_the_character_and_keeps_the_class(example: Path) -> None:
    classifier = load_classifier()
    model = classifier.load(RECIPE / "classifier.safetensors")
    count, diversity = {}, {}
    for name in ("base-character", "tuned-character", "base-class", "tuned-class"):
        images = load_images(example, name)
        assert len(images) == 16
        count[name] = classifier.classify(model, images)["medium"].count("adventurer")
        diversity[name] = classifier.diversity(model, images)
    print(count, diversity)
    assert count["base-character"] <= 1
    assert count["tuned-character"] >= 12
    assert count["tuned-class"] <= 1
    assert diversity["tuned-class"] >= 0.8 * diversity["base-class"]


def test_plain_diffusers_draws_the_same_images_from_the_export(example: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(example / "tuned")
    pipeline.set_progress_bar_config(disable=True)
    for seed in (0, 1):
        expected = pipeline(
            PROMPTS["character"], num_inference_steps=25, guidance_scale=4.0,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]  # fmt: skip
        ours = load_images(example, "tuned-character")[seed]
        assert (ours - pil_to_tensor(expected) / 255).abs().max() <= 1.5 / 255


def test_the_example_runs_twice_and_reuses_its_class_images(example: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (example / "runs/.cache/class_images").rglob("*.png")}
    summary = run(example, "fit", "--trainer.max_steps=2", "--samples.num_images=1", "--fidelity.num_images=2")
    assert re.match(r"toon-2: 2 steps", summary)
    assert {path: path.stat().st_mtime_ns for path in (example / "runs/.cache/class_images").rglob("*.png")} == before
