import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import tiny

from lightning_dreambooth.cli.main import build_job
from lightning_dreambooth.evaluation.dreambench import Subject
from lightning_dreambooth.study.fits import benchmark_folder, build_fit, finished, locked
from lightning_dreambooth.study.variants import Variant

Name = Callable[..., str]


@pytest.fixture
def name(here: Path, tiny_sd: Path, small_clip: Path) -> Name:
    """The name of a fit."""
    (here / "fit.yaml").write_text("model: {prior_weight: 1.0}\n")
    common = {
        "model.pretrained": str(tiny_sd), "data.instance_data_dir": "girl", "data.class_data_dir": "class",
        "data.instance_prompt": "a photo of sks girl", "data.class_prompt": "a photo of a girl",
        "data.num_class_images": 3, "trainer.max_steps": 4, "trainer.accelerator": "cpu",
        "fidelity.clip_model": str(small_clip), "data.identifier": "sks",
    }  # fmt: skip

    def name(**changes: object) -> str:
        changed = common | {key.replace("__", "."): value for key, value in changes.items()}
        variant = Variant("a", ["fit.yaml"], changed, {})
        return build_fit("mine", variant, 1, build_job(variant.argv(1))).name

    return name


def test_a_fit_is_named_by_all_that_decides_it(name: Name, here: Path) -> None:
    names = [
        name(), name(model__prior_weight=0.5), name(fidelity__seed=3), name(trainer__max_steps=5),
        name(checkpoint__dtype="float32"), name(data__class_prompt="a photo of a boy"),
    ]  # fmt: skip
    tiny.images(here / "girl", 6)
    names.append(name())
    (here / "girl/00.txt").write_text("another caption of sks")
    names.append(name())
    assert len({*names}) == len(names)


def test_settings_that_do_not_decide_a_fit_leave_its_name(name: Name) -> None:
    assert name() == name(samples__num_images=7) == name(checkpoint__every_n_steps=1)


def test_a_concepts_list_decides_by_its_content(name: Name, here: Path) -> None:
    concept = {
        "instance_prompt": "a photo of sks girl", "instance_data_dir": "girl", "class_prompt": "a photo of a girl",
        "class_data_dir": "class", "identifier": "sks",
    }  # fmt: skip
    flags = dict.fromkeys(
        ("data__instance_prompt", "data__instance_data_dir", "data__class_prompt", "data__class_data_dir",
         "data__identifier")
    )  # fmt: skip
    names = []
    for weight in (1, 2):
        (here / "concepts.json").write_text(json.dumps([concept | {"weight": weight}]))
        names.append(name(**flags, data__concepts_list="concepts.json"))
    assert names[0] != names[1]


def test_building_a_job_writes_nothing(name: Name, here: Path) -> None:
    before = {*here.rglob("*")}
    name()
    assert {*here.rglob("*")} == before


def test_one_process_at_a_time_works_on_a_run(here: Path) -> None:
    run = here / "runs/mine/a"
    with locked(run), run.with_name(".a.lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not finished(run)


def test_a_test_is_named_by_how_it_is_drawn(name: Name, here: Path, tiny_sd: Path) -> None:
    subject = Subject("mug", "cup", sorted((here / "girl").iterdir()), ["a {0} {1}"])
    words = ["--config=fit.yaml", f"--model.pretrained={tiny_sd}", "--model.prior_weight=0", "--trainer.max_steps=1"]
    words += ["--data.instance_data_dir=girl", "--data.instance_prompt=a photo of x"]
    variant = Variant("a", ["fit.yaml"], {}, {})
    folders = set()
    for more in ([], ["--benchmark.steps=3"]):
        job = build_job([*words, *more])
        folders.add(benchmark_folder(build_fit("mine", variant, 1, job), job, subject))
    folders.add(benchmark_folder(build_fit("mine", variant, 1, job), job, subject._replace(prompts=["b {0} {1}"])))
    assert len(folders) == 3
