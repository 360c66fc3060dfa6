"""Studies from end to end, on a model of a million random parameters."""

import csv
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import forked, tiny
from helpers.datasets import made_up_dataset
from PIL import ImageChops

from lightning_dreambooth.data.images import read_image
from lightning_dreambooth.evaluation.encoders import Clip
from lightning_dreambooth.evaluation.metrics import cosines
from lightning_dreambooth.evaluation.tables import read_json
from lightning_dreambooth.files import sha256
from lightning_dreambooth.models.model_files import ModelFiles

pytestmark = pytest.mark.slow

FIT = {
    "model": {"pretrained": "tiny", "prior_weight": 1.0},
    "data": {
        "instance_data_dir": "girl", "instance_prompt": "a photo of sks girl", "class_data_dir": "class",
        "class_prompt": "a photo of a girl", "identifier": "sks", "num_class_images": 3, "class_steps": 2,
        "batch_size": 2,
    },
    "samples": {"steps": 1, "num_images": 1},
    "fidelity": {"clip_model": "clip", "steps": 2, "every_n_steps": 2},
    "trainer": {"max_steps": 4, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
}  # fmt: skip
STUDY = {
    "config": "fit.yaml",
    "variants": {"with": {}, "without": {"model.prior_weight": 0.0}},
    "seeds": [1, 2],
    "sampling": {"num_images": 2, "seed": 5, "steps": 2, "guidance_scale": 2.0, "batch_size": 3},
    "quality": {"good": "a photo", "bad": "ugly"},
    "figures": {
        "training": {"training_pictures": True, "variants": ["with"]},
        "subject": {"prompt": "a photo of sks girl", "note": "look at <this>"},
        "settings": {"prompt": "a photo of a boy in the style of sks", "steps": [1, 3], "variants": ["with"]},
    },
    "findings": [
        {"claim": "it learns", "figure": "subject", "measure": "clip_i", "more": {"variant": "without"},
         "less": {"variant": "with"}},
        {"claim": "steps help", "figure": "settings", "measure": "quality", "more": {"steps": 3}, "less": {"steps": 1}},
    ],
}  # fmt: skip


def room(folder: Path) -> Path:
    """A folder with a model, an encoder, images and a study."""
    tiny.stable_diffusion(folder / "tiny")
    tiny.clip(folder / "clip")
    tiny.subject(folder / "girl", 4)
    (folder / "fit.yaml").write_text(yaml.safe_dump(FIT))
    (folder / "mine.yaml").write_text(yaml.safe_dump(STUDY))
    return folder


def study(folder: Path, *words: str) -> str:
    """Runs the study to its end; returns what it and its fits have printed."""
    run = forked.start(folder, ["study", *(words or ["mine.yaml"])])
    assert run.wait(patience_seconds=600) == 0, run.printed()
    return run.printed()


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as opened:
        return list(csv.DictReader(opened))


def tables(folder: Path) -> dict[str, list[dict[str, str]]]:
    """All tables, without the digests in names of runs, and with images by their content."""
    by_name = {}
    for file in sorted((folder / "runs/mine/tables").glob("*.csv")):
        by_name[file.stem] = [
            {key: sha256(folder / value) if key == "file" else value for key, value in row.items()}
            for row in rows(file)
        ]
    return by_name


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that ran without a stop."""
    folder = room(tmp_path_factory.mktemp("study"))
    (folder / "said").write_text(study(folder))
    return folder


def test_the_last_line_names_every_output(done: Path) -> None:
    lines = (done / "said").read_text().splitlines()
    pattern = r"mine: 4 fits, 3 figures, 16 images measured in \d+ min; report in (\S+), tables in (\S+)"
    report, tables = re.fullmatch(pattern, lines[-1]).groups()
    assert (done / report).is_file()
    assert {file.stem for file in (done / tables).iterdir()} == {"images", "figures", "fits", "findings"}
    assert sum("steps help" in line for line in lines) == 1


def test_the_report_needs_no_other_file_and_shows_every_image(done: Path) -> None:
    page = (done / "runs/mine/report.html").read_text()
    assert [link for link in re.findall(r'(?:src|href)="([^"]*)"', page) if not link.startswith(("data:", "#"))] == []
    assert page.count('src="data:image/webp') == 4 + 2 * 4 + 2 * 4  # training images, both figures
    assert "look at &lt;this&gt;" in page
    assert "steps help" in page
    assert "<svg" not in page
    assert page.count("data:image/svg+xml") >= 2 * 3  # curves of the settings, and of training


def test_rows_of_images_hold_the_metrics_of_an_encoder(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done)
    clip = Clip("clip")
    instances = clip.images([read_image(path) for path in sorted(Path("girl").glob("*.png"))])
    images = rows(Path("runs/mine/tables/images.csv"))
    assert len(images) == 16
    for row in images:
        embedding = clip.images([read_image(Path(row["file"]))])
        texts = clip.texts([row["text"], "a photo", "ugly"])
        assert float(row["clip_i"]) == pytest.approx(cosines(embedding, instances).mean().item(), abs=1e-3)
        to_texts = cosines(embedding, texts)[0]
        assert float(row["clip_t"]) == pytest.approx(to_texts[0].item(), abs=1e-3)
        better = torch.softmax(clip.logit_scale * to_texts[1:], 0)[0].item()
        assert float(row["quality"]) == pytest.approx(better, abs=2e-2)
    assert {row["text"] for row in images} == {"a photo of girl", "a photo of a boy"}


def test_columns_of_a_figure_share_their_noise(done: Path) -> None:
    images = rows(done / "runs/mine/tables/images.csv")
    by_row: dict[tuple[str, ...], list[str]] = {}
    for row in images:
        by_row.setdefault((row["figure"], row["variant"], row["steps"], row["fit_seed"]), []).append(row["seed"])
    assert set(map(tuple, by_row.values())) == {("5", "6")}


def test_metrics_of_figures_are_the_means_over_fits(done: Path) -> None:
    images = rows(done / "runs/mine/tables/images.csv")
    for row in rows(done / "runs/mine/tables/figures.csv"):
        mine = [image for image in images if all(image[key] == row[key] for key in ("figure", "variant", "steps"))]
        assert float(row["clip_i"]) == pytest.approx(sum(float(image["clip_i"]) for image in mine) / len(mine))
        assert float(row["clip_i_low"]) <= float(row["clip_i"]) <= float(row["clip_i_high"])


def test_a_finished_study_is_not_run_again(done: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (done / "runs/mine").rglob("*.safetensors")}
    before |= {path: path.stat().st_mtime_ns for path in (done / "runs/mine").rglob("*.png")}
    first = tables(done)
    printed = study(done)
    assert "mine: 4 fits, 9 tasks, of which 9 are done" in printed
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert tables(done) == first


def test_a_dry_run_lists_unfinished_tasks_and_runs_none(done: Path, tmp_path: Path) -> None:
    assert "about 0 min in all" in study(done, "mine.yaml", "--dry_run")
    folder = room(tmp_path)
    printed = study(folder, "mine.yaml", "--dry_run")
    assert "mine: 4 fits, 9 tasks, of which 0 are done" in printed
    assert "fit without, seed 2: 4 steps" in printed
    assert not (folder / "runs").exists()
    assert not (folder / "class").exists()


def test_only_what_was_changed_runs_again(done: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(done, tmp_path / "copy", symlinks=True)
    changed = STUDY | {"variants": {"with": {}, "without": {"model.prior_weight": 0.0, "data.flip": True}}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(changed | {"seeds": [1]}))
    assert "mine: 2 fits, 5 tasks, of which 3 are done" in study(folder)
    (folder / "girl/00.png").unlink()  # what is learned is part of what a fit is
    printed = study(folder)
    assert "mine: 2 fits, 5 tasks, of which 1 are done" in printed


def test_a_killed_study_that_is_resumed_ends_like_an_uninterrupted_one(done: Path, tmp_path: Path) -> None:
    folder = room(tmp_path)
    for number in (signal.SIGTERM, signal.SIGKILL):
        run = forked.start(folder, ["study", "mine.yaml"])
        fits = len(list((folder / "runs").glob("mine/*/study.json")))
        while len(list((folder / "runs").glob("mine/*/exports/*"))) <= fits:
            time.sleep(0.05)
            assert run.process.is_alive(), run.printed()
        os.kill(run.process.pid, number)
        code = run.wait()
        assert code in (128 + number, -number), run.printed()
    study(folder)
    assert tables(folder) == tables(done)


def test_a_grid_becomes_curves(tmp_path: Path) -> None:
    folder = room(tmp_path)
    content = {
        "config": "fit.yaml", "grid": {"data.num_instance_images": [2, 4]}, "overrides": {"trainer.max_steps": 1},
        "sampling": STUDY["sampling"], "figures": {"subject": {"prompt": "a photo of sks girl"}},
    }  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    study(folder)
    figures = rows(folder / "runs/mine/tables/figures.csv")
    assert [row["num_instance_images"] for row in figures] == ["2", "4"]
    assert [row["variant"] for row in figures] == ["num_instance_images=2", "num_instance_images=4"]
    assert (folder / "runs/mine/report.html").read_text().count('<img src="data:image/svg+xml') >= 3


def test_every_subject_of_a_dataset_is_fitted_tested_and_merged(tmp_path: Path) -> None:
    folder = room(tmp_path)
    made_up_dataset(folder / "set")
    overrides = {"trainer.max_steps": 2, "benchmark.steps": 2, "benchmark.num_images": 2}
    content = {"config": "fit.yaml", "dreambench": {"folder": "set"}, "overrides": overrides, "seeds": [3]}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    study(folder)
    table = rows(folder / "runs/mine/tables/dreambench.csv")
    assert [row[""] for row in table[:3]] == ["mug", "owl", "mean of 2 subjects"]
    assert float(table[2]["clip_i"]) == pytest.approx((float(table[0]["clip_i"]) + float(table[1]["clip_i"])) / 2)
    assert float(table[2]["clip_i_low"]) == pytest.approx(min(float(row["clip_i"]) for row in table[:2]))
    assert [row["clip_t"] for row in table if row[""] == "published: DreamBooth, Stable Diffusion"] == ["0.305"]
    assert "published: DreamBooth, Imagen" in (folder / "runs/mine/report.html").read_text()
    assert "of which 6 are done" in study(folder)


def test_the_scale_of_adapters_is_an_axis_and_their_files_are_tested(tmp_path: Path) -> None:
    folder = room(tmp_path)
    made_up_dataset(folder / "set")
    overrides = {"model.lora.rank": 4, "model.optimizer.lr": 0.01, "benchmark.steps": 2, "benchmark.num_images": 2}
    figures = {"scale": {"prompt": "a photo of sks mug", "lora_scale": [0, 1]}}
    content = {
        "config": "fit.yaml", "dreambench": {"folder": "set", "subjects": ["mug"]}, "overrides": overrides,
        "figures": figures, "sampling": STUDY["sampling"],
    }  # fmt: skip
    (folder / "mine.yaml").write_text(yaml.safe_dump(content))
    study(folder)
    images = rows(folder / "runs/mine/tables/images.csv")
    assert [row["lora_scale"] for row in images] == ["0.0", "0.0", "1.0", "1.0"]
    drawn = [read_image(folder / row["file"]) for row in images]
    assert drawn[0].tobytes() != drawn[2].tobytes()
    words = ["predict", "--model.pretrained=tiny", "--samples.prompts=[a photo of sks mug]", "--samples.num_images=1",
             "--samples.steps=2", "--samples.guidance_scale=2.0", "--samples.seed=5", "--trainer.accelerator=cpu",
             "--samples.sampler=ddim", "--name=base"]  # fmt: skip
    assert forked.start(folder, words).wait() == 0
    base = read_image(next((folder / "runs/base").glob("0000-*.png")))
    assert ImageChops.difference(base, drawn[0]).getextrema() <= ((0, 1),) * 3
    record = read_json(next((folder / "runs/mine").glob("mug-seed0-*-test-*")) / "benchmark.json")
    assert record["model"] != ModelFiles(str(folder / "tiny")).fingerprint
    assert "of which 4 are done" in study(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": {"lora_scale": 0.5}}, "a figure draws it at lora_scale 0.5, but it trains no adapters"),
        ({"sampling": {"lora_scale": -1}}, "lora_scale is -1.0, must lie in 0 ... 10"),
        ({"overrides": {"model.colour": "red"}}, "model.colour"),
        ({"overrides": {"model.prior_weight": -1}}, "model.prior_weight is -1"),
        ({"overrides": {"data.instance_data_dir": "nowhere"}}, "nowhere is not a folder"),
        ({"overrides": {"fidelity.clip_model": None}}, "no encoder measures its images"),
        ({"overrides": {"checkpoint.keep_exports": 10**9}}, "bytes are free there"),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_anything_is_trained(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = room(tmp_path)
    (folder / "mine.yaml").write_text(yaml.safe_dump(STUDY | change))
    run = forked.start(folder, ["study", "mine.yaml"])
    assert run.wait() == 2
    assert message in [line for line in run.printed().splitlines() if "error:" in line][-1]
    assert not (folder / "runs").exists()


def of_the_first_fits(folder: Path) -> list[list[str]]:
    """Labels and content of each image of the fits with the first seed."""
    return [list(row.values()) for row in tables(folder)["images"] if row["fit_seed"] == "1"]


def test_fits_of_two_processes_give_the_same_metrics(done: Path, tmp_path: Path) -> None:
    folder = room(tmp_path)
    two = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.batch_size": 1}
    (folder / "mine.yaml").write_text(yaml.safe_dump(STUDY | {"overrides": two, "seeds": [1]}))
    study(folder)
    names = ("clip_i", "clip_t", "quality")
    one = [float(row[name]) for row in tables(done)["images"] for name in names if row["fit_seed"] == "1"]
    both = [float(row[name]) for row in tables(folder)["images"] for name in names]
    assert both == pytest.approx(one, abs=1e-3)


def test_ray_with_a_worker_killed_gives_the_same_images(done: Path, tmp_path: Path) -> None:
    folder = room(tmp_path)
    (folder / "mine.yaml").write_text(yaml.safe_dump(STUDY | {"seeds": [1], "resources": {"num_cpus": 1.0}}))
    run = forked.start(folder, ["study", "mine.yaml", "--executor=ray"])
    killed = False
    while not killed:
        assert run.process.is_alive(), run.printed()
        time.sleep(0.05)
        if list((folder / "runs").glob("mine/*/states/*")) and (workers := workers_in(folder)):
            os.kill(workers[0], signal.SIGKILL)
            killed = True
    assert run.wait(patience_seconds=600) == 0, run.printed()
    assert of_the_first_fits(folder) == of_the_first_fits(done)


def test_a_study_on_ray_that_is_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = room(tmp_path)
    (folder / "mine.yaml").write_text(yaml.safe_dump(STUDY | {"seeds": [1], "overrides": {"trainer.max_steps": 5000}}))
    run = forked.start(folder, ["study", "mine.yaml", "--executor=ray"])
    while not list((folder / "runs").glob("mine/*/samples/*")):
        assert run.process.is_alive(), run.printed()
        time.sleep(0.05)
    run.send(signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM, run.printed()
    assert "stopped by SIGTERM; what was written stays" in run.printed()
    assert workers_in(folder) == []
    assert [process for process in processes() if b"lightning_dreambooth" in command_of(process)
            and str(folder).encode() in place_of(process)] == []  # fmt: skip


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def workers_in(folder: Path) -> list[int]:
    """Ray's workers that run tasks of the study in a folder."""
    return [
        process for process in processes()
        if b"ray::_do" in command_of(process) and place_of(process) == str(folder).encode()
    ]  # fmt: skip


def place_of(process: int) -> bytes:
    """Its working folder."""
    try:
        return os.readlink(f"/proc/{process}/cwd").encode()
    except OSError:  # it has ended meanwhile
        return b""


def command_of(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def test_the_study_on_a_model_of_stable_diffusions_layout(tmp_path: Path) -> None:
    folder = tmp_path
    tiny.stable_diffusion(folder / "sd15", factor=8)
    for file in list((folder / "sd15").rglob("*.safetensors")):
        shutil.copy(file, file.with_suffix(".fp16.safetensors"))
    tiny.clip(folder / "clip")
    tiny.dino(folder / "dino")
    tiny.subject(folder / "data/webtoon", 3)
    (folder / "configs").symlink_to(Path(__file__).parent.parent.parent / "configs")
    small = {
        "model.pretrained": "sd15", "model.vae": "sd15/vae", "data.resolution": 32, "data.num_class_images": 2,
        "data.class_steps": 1, "samples.steps": 1, "samples.num_images": 1, "fidelity.clip_model": "clip",
        "fidelity.clip_pretrained": None, "fidelity.dino": "dino", "fidelity.steps": 1, "trainer.max_steps": 1,
        "trainer.accelerator": "cpu", "trainer.log_every_n_steps": 1, "trainer.enable_progress_bar": False,
        "trainer.precision": "bf16-mixed",
    }  # fmt: skip
    extended = yaml.safe_load((folder / "configs/studies/webtoon.yaml").read_text())
    for figure in extended["figures"].values():
        figure["steps"] = [1, 2] if isinstance(figure.get("steps"), list) else 1
    sampling = extended["sampling"] | {"num_images": 2}
    content = {"extends": "configs/studies/webtoon_sd15.yaml", "overrides": small, "seeds": [1], "sampling": sampling}
    content |= {"figures": extended["figures"], "findings": []}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    study(folder)
    page = (folder / "runs/mine/report.html").read_text()
    assert len(re.findall(r"<section id=", page)) == len(extended["figures"])
    figures = rows(folder / "runs/mine/tables/figures.csv")
    assert {"clip_i", "dino", "clip_t", "quality", "div"} <= figures[0].keys()
