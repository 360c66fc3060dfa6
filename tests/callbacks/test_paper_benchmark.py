import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import tiny
from helpers.datasets import PROMPTS_AND_CLASSES
from PIL import Image
from torch.nn.functional import cosine_similarity
from torchvision.transforms.functional import pil_to_tensor

from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.errors import InputError
from lightning_dreambooth.evaluation.dreambench import read_subject
from lightning_dreambooth.evaluation.encoders import Clip

Run = Callable[..., DreamBoothCLI]


@pytest.fixture
def bench(here: Path) -> Path:
    folder = here / "bench"
    tiny.images(folder / "red_girl", 4, size_px=60)
    tiny.images(folder / "blue_dog", 2, size_px=50)
    (folder / "prompts_and_classes.txt").write_text(PROMPTS_AND_CLASSES)
    return folder


@pytest.fixture
def tested(bench: Path, run: Run, small_clip: Path) -> Run:
    def tested(**changes: object) -> DreamBoothCLI:
        settings = {
            "benchmark__folder": "bench", "benchmark__subject": "red_girl", "benchmark__num_images": 2,
            "benchmark__steps": 2, "benchmark__batch_size": 2, "fidelity__clip_model": small_clip,
            "data__identifier": "sks",
        }  # fmt: skip
        return run("test", **(settings | changes))

    return tested


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "images.csv").open() as file:
        return list(csv.DictReader(file))


def test_objects_and_live_subjects_have_prompts_of_their_own(bench: Path) -> None:
    assert read_subject(bench, "red_girl").prompts == ["a {0} {1} with pink hair", "a photo of a {0} {1}"]
    assert read_subject(bench, "blue_dog").prompts == ["a {0} {1} in a hat"]
    assert read_subject(bench, "blue_dog").class_name == "dog"


def test_the_metrics_are_those_of_open_clip_on_the_images_it_has_written(
    here: Path, tested: Run, bench: Path, small_clip: Path
) -> None:
    tested()
    run = here / "runs/test-red_girl"
    clip = Clip(str(small_clip))
    real = clip.images([Image.open(path).convert("RGB") for path in sorted((bench / "red_girl").glob("*.png"))])
    for row in rows(run):
        embedding = clip.images([Image.open(run / "images" / row["file"])])
        assert float(row["clip_i"]) == pytest.approx(cosine_similarity(embedding, real).mean().item(), abs=2e-3)
        [text] = clip.texts([row["prompt"].replace("sks ", "")])
        assert float(row["clip_t"]) == pytest.approx(cosine_similarity(embedding, text[None]).item(), abs=2e-3)
        assert (row["sampler"], row["steps"], row["guidance_scale"]) == ("ddim", "2", "7.5")
        assert row["clip_i_backbone"] == "small"
        assert "CenterCrop" in row["clip_i_preprocessing"]
    assert [row["prompt"] for row in rows(run)[::2]] == ["a sks girl with pink hair", "a photo of a sks girl"]
    summary = json.loads((run / "summary.json").read_text())
    values = [float(row["clip_i"]) for row in rows(run)]
    assert summary["metrics"]["clip_i"]["mean"] == pytest.approx(sum(values) / 4)
    assert summary["metrics"]["clip_i"]["low"] <= summary["metrics"]["clip_i"]["mean"]
    assert "0.668" in (run / "summary.md").read_text()


def test_an_interrupted_test_draws_only_missing_images_and_ends_in_the_same_metrics(here: Path, tested: Run) -> None:
    tested()
    run = here / "runs/test-red_girl"
    whole = rows(run)
    images = {path.name: pil_to_tensor(Image.open(path)) for path in (run / "images").iterdir()}
    files = sorted((run / "images").iterdir())
    for file in files[1:3]:
        file.unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in (run / "images").iterdir()}
    tested()
    assert {name: (run / "images" / name).stat().st_mtime_ns for name in kept} == kept
    assert rows(run) == whole
    assert all(torch.equal(pil_to_tensor(Image.open(run / "images" / name)), images[name]) for name in images)
    tested()  # nothing is left to draw
    assert rows(run) == whole


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"benchmark__subject": None}, "give benchmark.subject"),
        ({"benchmark__subject": "green_cat"}, "does not list the subject 'green_cat'; it lists red_girl, blue_dog"),
        ({"benchmark__folder": "nowhere"}, "prompts_and_classes.txt does not exist"),
        ({"fidelity__clip_model": None}, "give fidelity.clip_model or fidelity.dino"),
        ({"benchmark__num_images": 0}, "num_images is 0, must lie in 1 ... 100,000"),
        ({"benchmark__steps": 0}, "benchmark.steps is 0, must lie in"),
        ({"data__identifier": None}, "give data.identifier"),
    ],
)
def test_a_test_that_cannot_run_is_refused_in_one_line(
    here: Path, tested: Run, capsys: pytest.CaptureFixture[str], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        tested(**settings)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_two_states_of_a_model_are_two_tests(
    here: Path, run: Run, tested: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run(name="run", checkpoint__every_n_steps=2)
    states = [f"runs/run/states/step-00000{step}.ckpt" for step in (2, 4)]
    tested(ckpt_path=states[0])
    with pytest.raises(SystemExit):
        tested(ckpt_path=states[1])
    assert "holds another test or run (state)" in capsys.readouterr().err


def test_a_folder_that_holds_another_test_is_refused(
    here: Path, tested: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    tested()
    with pytest.raises(SystemExit):
        tested(benchmark__seed=5)
    assert "holds another test or run (seed)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "source",
    [
        "[__import__('os').system('touch owned')]",
        "['a {0} {1}'.format(unique_token, open('owned', 'w'))]",
        "['no place'.format(unique_token, class_token)]",
        "['a {0} {1} {2}'.format(unique_token, class_token)]",
        "['a {0.__class__} {1}'.format(unique_token, class_token)]",
        "['a {0} {1'.format(unique_token, class_token)]",
        "['a {0} {1}'.join(unique_token, class_token)]",
        "[f'a {unique_token}']",
        "[1, 2]",
        "('a'",
        "[" * 5000,
    ],
)
def test_a_prompt_list_is_read_and_never_run(bench: Path, source: str) -> None:
    subjects = PROMPTS_AND_CLASSES.split("prompt_list")[0]
    text = subjects + f"prompt_list = [\n{source[1:]}\n]\n" + f"prompt_list = {source}\n]\n"
    (bench / "prompts_and_classes.txt").write_text(text)
    with pytest.raises(InputError, match="prompt"):
        read_subject(bench, "red_girl")
    assert not Path("owned").exists()
