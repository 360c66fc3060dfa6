"""Two processes do the work of one."""

import csv
import json
import signal
from pathlib import Path

import pytest
import torch
from helpers import forked, orphan, tiny
from helpers.datasets import PROMPTS_AND_CLASSES
from helpers.forked import WORDS, until
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Two means of two rows are not summed in the order of one mean of four, and Adam's first steps turn a rounding error in
# a gradient near zero into a step of the learning rate, 5e-6, in either direction.
BOUND = 2e-5
SAME = [
    "--trainer.max_steps=4", "--model.ema_decay=null", "--data.flip=true",
    "--trainer.callbacks+=helpers.probes.Recorder",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.stable_diffusion(tmp_path / "tiny")
    tiny.images(tmp_path / "girl", 5)
    return tmp_path


def words(name: str, batch_size: int, **settings: object) -> list[str]:
    flags = [f"--{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return ["fit", *WORDS, *SAME, f"--trainer.callbacks.folder=seen-{name}", f"--name={name}",
            f"--data.batch_size={batch_size}", "--data.class_batch_size=2", *flags]  # fmt: skip


def alone(folder: Path, *args: str) -> None:
    run = forked.start(folder, list(args))
    assert run.wait() == 0, run.printed()


def together(folder: Path, *args: str) -> None:
    runs = forked.together(folder, list(args))
    assert [run.wait() for run in runs] == [0, 0], [run.printed() for run in runs]


def weights(folder: Path, name: str, rank: int = 0) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in load_file(folder / f"seen-{name}/{rank}").values()])


def numbers(folder: Path, name: str, rank: int = 0) -> list[list[int]]:
    return json.loads((folder / f"seen-{name}/{rank}.json").read_text())


def losses(folder: Path, name: str) -> list[float]:
    log = EventAccumulator(str(folder / "runs" / name)).Reload()
    return [event.value for event in log.Scalars("train/loss")]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".png", ".safetensors")}


def test_two_processes_do_what_one_does(folder: Path) -> None:
    together(folder, *words("two", 2))
    alone(folder, *words("one", 4, data__class_data_dir="class-one", data__cache_dir="cache-one"))

    # Class images: as many, each by one process, and the same to the last bit, for whole batches are shared out.
    assert len(set(files(folder / "class").values())) == 3
    assert files(folder / "class") == files(folder / "class-one")
    outputs = [(folder / f"output-{rank}").read_text() for rank in (0, 1)]
    assert "2/2" in outputs[0]  # of three class images, two; its part of sixteen encodings, eight
    assert "class images" not in outputs[1]
    assert len(files(folder / "cache")) == 16

    # Samples: step by step those of one process.
    both = zip(numbers(folder, "two", 0), numbers(folder, "two", 1), strict=True)
    assert [[*first, *second] for first, second in both] == numbers(folder, "one")

    # Weights: on both processes the same to the last bit, and those of one process up to the order of summation.
    assert torch.equal(weights(folder, "two", 0), weights(folder, "two", 1))
    assert (weights(folder, "two") - weights(folder, "one")).abs().max() < BOUND
    assert losses(folder, "two") == pytest.approx(losses(folder, "one"), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [{}, {"model__lora__rank": 4}], ids=["full", "lora"])
def test_two_processes_have_the_teacher_of_one(folder: Path, adapters: dict[str, int]) -> None:
    # By its first step Adam turns rounding errors into steps, so plain gradient descent.
    settings = adapters | {
        "model__prior": "teacher", "data__class_data_dir": "null", "model__prior_weight": 10,
        "model__optimizer": "torch.optim.SGD", "model__optimizer__lr": 0.1,
    }  # fmt: skip
    together(folder, *words("two", 2, **settings))
    alone(folder, *words("one", 4, **settings))
    assert torch.equal(weights(folder, "two", 0), weights(folder, "two", 1))
    assert (weights(folder, "two") - weights(folder, "one")).abs().max() < BOUND
    assert losses(folder, "two") == pytest.approx(losses(folder, "one"), rel=1e-3)


@pytest.mark.slow
def test_a_run_stopped_on_two_processes_is_resumed_on_one(folder: Path) -> None:
    together(folder, *words("whole", 2))
    together(folder, *words("half", 2, trainer__limit_train_batches=2))
    alone(folder, *words("half", 4, ckpt_path="last"))
    first, second = (numbers(folder, "whole", rank) for rank in (0, 1))
    assert numbers(folder, "half") == [[*a, *b] for a, b in zip(first[2:], second[2:], strict=True)]
    assert (weights(folder, "half") - weights(folder, "whole")).abs().max() < BOUND


@pytest.mark.slow
def test_a_run_continues_with_the_next_sample_when_the_batch_size_changes(folder: Path) -> None:
    alone(folder, *words("run", 4, trainer__limit_train_batches=2))
    alone(folder, *words("run", 2, ckpt_path="last"))
    assert numbers(folder, "run") == [[8, 9], [10, 11]]


@pytest.mark.slow
def test_an_orphan_of_a_killed_run_does_not_disturb_the_next_one(folder: Path) -> None:
    many = {"data__num_class_images": 40, "data__class_steps": 10, "data__class_batch_size": 1}
    drawing = words("run", 2, ckpt_path="last", **many)
    first, orphan = forked.together(folder, drawing)
    until(first, lambda: len([*(folder / "class").glob("*.png")]) > 4)
    first.send(signal.SIGKILL)
    together(folder, *drawing)
    assert orphan.wait() == 1, orphan.printed()
    assert len(files(folder / "class")) == 40
    for name in files(folder / "class"):
        Image.open(folder / "class" / name).load()
    assert not list(folder.rglob(".*.part"))


def test_processes_share_the_work_that_the_first_one_sees(folder: Path) -> None:
    assert forked.on_two_ranks(orphan.fill_beside_it, folder) == [0, 0]
    assert len(files(folder)) == 5


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_whose_partner_dies_ends_within_seconds_in_one_line(folder: Path, victim: int) -> None:
    runs = forked.together(folder, words("run", 2, trainer__max_steps=1000, checkpoint__every_n_steps=2))
    until(runs[0], lambda: len(list((folder / "runs/run/states").glob("*.ckpt"))) > 1)
    survivor = runs[1 - victim]
    runs[victim].send(signal.SIGKILL)
    assert survivor.wait(10) == 1, survivor.printed()
    lines = [line for line in survivor.printed().splitlines() if "error: " in line]
    assert len(lines) == 1
    assert "another process of the run has died" in lines[0]
    assert "resume with --ckpt_path last" in lines[0]
    assert "Traceback" not in survivor.printed()


def test_two_processes_draw_the_images_of_one(folder: Path) -> None:
    asked = ["predict", "--model.pretrained=tiny", "--samples.prompts=[a girl, a boy]", "--samples.num_images=2",
             "--samples.steps=2", "--trainer.accelerator=cpu", "--samples.batch_size=1"]  # fmt: skip
    alone(folder, *asked)
    (folder / "runs/predict-2").mkdir()  # another run has just begun
    together(folder, *asked)
    one, two = (files(folder / "runs" / name) for name in ("predict", "predict-3"))
    assert len(one) == 5
    assert one == two


def test_a_process_without_a_batch_of_its_own_waits_for_the_others(folder: Path) -> None:
    asked = ["predict", "--model.pretrained=tiny", "--samples.prompts=a girl", "--samples.num_images=2",
             "--samples.steps=2", "--trainer.accelerator=cpu"]  # fmt: skip
    alone(folder, *asked)
    together(folder, *asked)
    one, two = (files(folder / "runs" / name) for name in ("predict", "predict-2"))
    assert len(one) == 3
    assert one == two


def test_two_runs_begun_at_the_same_moment_both_finish(folder: Path) -> None:
    runs = [forked.start(folder, ["fit", *WORDS], output=f"output-{number}") for number in (1, 2)]
    assert [run.wait() for run in runs] == [0, 0], [run.printed() for run in runs]
    for name in ("dreambooth", "dreambooth-2"):
        assert (folder / "runs" / name / "states/step-000006.ckpt").is_file()
        assert len(losses(folder, name)) == 6


@pytest.mark.slow
def test_lightnings_own_launcher_starts_the_second_process(folder: Path) -> None:
    alone(folder, *words("two", 2), "--trainer.devices=2", "--trainer.strategy=ddp")
    assert torch.equal(weights(folder, "two", 0), weights(folder, "two", 1))


def test_a_strategy_that_forks_is_refused(folder: Path) -> None:
    run = forked.start(folder, [*words("two", 2), "--trainer.devices=2", "--trainer.strategy=ddp_spawn"])
    assert run.wait() == 2
    assert "or forks; use ddp" in run.printed()
    assert not (folder / "runs").exists()


def measuring(folder: Path) -> list[str]:
    tiny.clip(folder / "clip")
    tiny.subject(folder / "girl", 5)
    fidelity = {"clip_model": "clip", "steps": 2, "batch_size": 2, "num_images": 3, "losses_every_n_steps": 2}
    return ["--data.identifier=sks", *(f"--fidelity.{name}={value}" for name, value in fidelity.items())]


def test_two_processes_measure_what_one_does(folder: Path) -> None:
    fidelity = measuring(folder)
    subject = ["validate", "--model.pretrained=tiny", "--data.instance_data_dir=girl", "--trainer.accelerator=cpu",
               "--data.instance_prompt=a photo of sks girl", "--data.class_prompt=a girl",
               "--fidelity.base=tiny", *fidelity]  # fmt: skip
    alone(folder, *subject, "--name=one")
    together(folder, *subject, "--name=two")
    one, two = (folder / "runs" / name for name in ("one", "two"))
    assert (one / "validation.csv").read_bytes() == (two / "validation.csv").read_bytes()
    assert files(one / "validation") == files(two / "validation")


@pytest.mark.slow
def test_two_processes_that_train_measure_together(folder: Path) -> None:
    fidelity = measuring(folder)
    together(folder, *words("two", 2, fidelity__every_n_steps=2), *fidelity)
    alone(folder, *words("one", 4, fidelity__every_n_steps=2), *fidelity)
    files_ = [folder / f"runs/{name}/validation.csv" for name in ("one", "two")]
    tables = [list(csv.reader(file.read_text().splitlines())) for file in files_]
    assert tables[0][0] == tables[1][0]
    assert tables[0][1] == tables[1][1]  # the untuned model
    last = [[float(value) for value in table[-1] if value] for table in tables]
    assert last[0] == pytest.approx(last[1], abs=0.02)  # of weights that are equal within BOUND


@pytest.mark.slow
def test_two_processes_test_what_one_does(folder: Path) -> None:
    fidelity = measuring(folder)
    tiny.images(folder / "bench/red_girl", 3)
    (folder / "bench/prompts_and_classes.txt").write_text(PROMPTS_AND_CLASSES)
    verb = ["test", "--model.pretrained=tiny", "--benchmark.folder=bench", "--benchmark.subject=red_girl",
            "--benchmark.steps=2", "--benchmark.batch_size=3", "--trainer.accelerator=cpu",
            *fidelity]  # fmt: skip
    alone(folder, *verb, "--name=one")
    together(folder, *verb, "--name=two", "--trainer.callbacks+=helpers.probes.Late")
    one, two = (folder / "runs" / name for name in ("one", "two"))
    assert (one / "images.csv").read_bytes() == (two / "images.csv").read_bytes()
    for file in (two / "images").iterdir():  # one more goes on alone where two were interrupted
        if "seed1" in file.name:
            file.unlink()
    alone(folder, *verb, "--name=two")
    assert (one / "images.csv").read_bytes() == (two / "images.csv").read_bytes()
