import csv
import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from helpers import tiny
from helpers.probes import scalars
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from lightning_dreambooth.cli.commands import DreamBoothCLI
from lightning_dreambooth.errors import InputWarning

Run = Callable[..., DreamBoothCLI]


@pytest.fixture
def measured(here: Path, run: Run, small_clip: Path) -> Run:
    """A run that measures every second of four steps."""
    tiny.subject(here / "girl", 5)
    settings = {
        "fidelity.clip_model": small_clip, "fidelity.steps": 2, "fidelity.every_n_steps": 2,
        "fidelity.losses_every_n_steps": 1, "data.identifier": "sks", "fidelity.guidance_scale": 2,
        "fidelity.unrelated_prompts": "[a photo of a boy]",
    }  # fmt: skip

    def measured(verb: str = "fit", *words: str, **changes: object) -> DreamBoothCLI:
        return run(verb, *words, **(settings | {key.replace("__", "."): value for key, value in changes.items()}))

    return measured


def table(run: Path) -> list[dict[str, float]]:
    with (run / "validation.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def exports(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "exports").iterdir())


METRICS = ["clip_i", "clip_t", "pres/small", "drift/small", "nearest/small", "div/small", "score"]


def test_every_metric_has_a_curve_beside_those_of_its_ceiling_and_of_the_base(here: Path, measured: Run) -> None:
    measured()
    run = here / "runs/dreambooth"
    curves = scalars(run)
    for metric in METRICS:
        assert [step for step, _ in curves[f"val/{metric}"]] == [0, 2, 4]
        assert {value for _, value in curves[f"val/{metric}/base"]} == {curves[f"val/{metric}"][0][1]}
    for metric in ("clip_i", "clip_t", "nearest/small"):
        assert len({value for _, value in curves[f"val/{metric}/ceiling"]}) == 1
    assert [step for step, _ in curves["val/loss/instance"]] == [0, 1, 2, 3, 4]
    assert {"val/loss/class/t125", "val/loss/class/t875", "val/seconds"} <= curves.keys()
    assert not {"val/dino", "val/pres", "val/loss/held_out"} & curves.keys()
    rows = table(run)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[0]["drift/small"] == pytest.approx(0, abs=1e-9)
    assert rows[-1]["drift/small"] > 0
    assert {path.name for path in (run / "validation").iterdir()} == {"step-000002.png", "step-000004.png"}


def test_measuring_changes_nothing_that_is_trained(here: Path, run: Run, measured: Run) -> None:
    measured(name="with", fidelity__losses_every_n_steps=1)
    run(name="without", fidelity__losses_every_n_steps="null", data__identifier="sks")
    on, off = (scalars(here / "runs" / name) for name in ("with", "without"))
    assert not any(tag.startswith("val/") for tag in off)
    assert {tag: on[tag] for tag in off if "per_second" not in tag} == {
        tag: off[tag] for tag in off if "per_second" not in tag
    }
    weights = [load_file(here / f"runs/{name}/exports/step-000004/unet/diffusion_pytorch_model.safetensors")
               for name in ("with", "without")]  # fmt: skip
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_no_encoder_enters_state_or_optimizer(here: Path, run: Run, measured: Run) -> None:
    measured(name="with")
    run(name="without", fidelity__losses_every_n_steps="null", data__identifier="sks")
    states = [torch.load(here / f"runs/{name}/states/step-000004.ckpt", weights_only=True)
              for name in ("with", "without")]  # fmt: skip
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()
    with_, without = (len(state["optimizer_states"][0]["state"]) for state in states)
    assert with_ == without > 0


@pytest.mark.slow
def test_validate_repeats_the_last_row_of_fit_from_its_state_and_about_from_its_export(
    here: Path, measured: Run, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured()
    last = table(here / "runs/dreambooth")[-1]
    metrics = [name for name in last if not name.startswith(("loss", "step"))]
    capsys.readouterr()
    measured("validate", name="state", ckpt_path="runs/dreambooth/states/step-000004.ckpt")
    assert "| clip_i" in capsys.readouterr().out
    assert table(here / "runs/state")[0] == {name: last[name] for name in metrics}
    export = "runs/dreambooth/exports/step-000004"
    measured("validate", name="export", model__pretrained=export, fidelity__base=tiny_sd)
    [row] = table(here / "runs/export")
    plain = [name for name in metrics if not name.startswith("score")]
    assert [row[name] for name in plain] == pytest.approx([last[name] for name in plain], abs=0.02)
    assert row["drift/small"] > 0


def test_the_base_has_no_drift_and_a_score_of_zero(here: Path, measured: Run, tiny_sd: Path) -> None:
    measured("validate", name="base", fidelity__base=tiny_sd)
    [row] = table(here / "runs/base")
    assert row["drift/small"] == pytest.approx(0, abs=1e-9)
    assert (row["score"], row["score/identity"], row["score/class"]) == (0, 0, 1)


@pytest.mark.slow
def test_images_of_the_base_model_are_drawn_once_for_all_runs(here: Path, measured: Run) -> None:
    measured(name="one")
    folder = here / "runs/.cache/base_images"
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert len(times) == 3 * 2 + 2  # for measuring, and the grid before training
    measured(name="two", model__prior_weight=0)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == times


def test_the_best_exports_stay_and_say_what_they_score(here: Path, measured: Run) -> None:
    measured(fidelity__every_n_steps=1, checkpoint__every_n_steps=4, checkpoint__keep_exports=1)
    run = here / "runs/dreambooth"
    scores = {int(row["step"]): row["score"] for row in table(run)[1:]}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert exports(run) == sorted({f"step-{best:06d}", "step-000004"})
    metrics = json.loads((run / f"exports/step-{best:06d}/validation.json").read_text())
    assert metrics["score"] == scores[best]
    assert f"| clip_i | {metrics['clip_i']:.3f} |" in (run / f"exports/step-{best:06d}/README.md").read_text()


@pytest.mark.slow
def test_repeating_a_finished_command_keeps_its_best_exports(here: Path, measured: Run) -> None:
    often = {"fidelity__every_n_steps": 1, "checkpoint__every_n_steps": 1, "checkpoint__keep_exports": 1}
    measured(name="run", checkpoint__keep_best=3, **often)
    before = exports(here / "runs/run")
    assert len(before) > 1
    measured(name="run", ckpt_path="last", checkpoint__keep_best=3, **often)
    assert exports(here / "runs/run") == before


def test_training_stops_when_the_score_no_longer_grows(here: Path, measured: Run) -> None:
    settings = {
        "name": "run", "ckpt_path": "last", "fidelity__every_n_steps": 1, "fidelity__patience": 2,
        "trainer__max_steps": 30, "model__optimizer": "torch.optim.AdamW", "model__optimizer__lr": 3e-3,
        "samples__every_n_steps": 100,
    }  # fmt: skip
    measured(**settings)
    rows = table(here / "runs/run")
    assert rows[-1]["step"] < 30
    scores = [row["score"] for row in rows[1:]]
    assert max(scores) > 0
    assert len(scores) - 1 - scores.index(max(scores)) == 2
    assert f"step-{len(scores):06d}.ckpt" in {path.name for path in (here / "runs/run/states").iterdir()}
    measured(**settings)  # going on does not train on
    assert table(here / "runs/run") == rows


@pytest.mark.slow
def test_scores_by_other_prompts_no_longer_count_in_a_resumed_run(here: Path, measured: Run) -> None:
    measured(name="run")
    with pytest.warns(InputWarning, match="they no longer count"):
        measured(name="run", ckpt_path="last", trainer__max_steps=6, fidelity__seed=5)
    rows = table(here / "runs/run")
    assert [row["step"] for row in rows if "score" in row] == [6]
    assert [row["step"] for row in rows if "clip_i" in row] == [0, 2, 4, 6]


@pytest.mark.slow
def test_resuming_an_earlier_state_drops_the_metrics_after_it(
    here: Path, measured: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    every = {"checkpoint__keep_states": 9, "checkpoint__every_n_steps": 1, "fidelity__every_n_steps": 1}
    measured(name="run", checkpoint__keep_exports=9, **every)
    capsys.readouterr()
    early = "runs/run/states/step-000001.ckpt"
    measured(name="run", ckpt_path=early, trainer__max_steps=2, model__optimizer__lr=1e-3, **every)
    rows = table(here / "runs/run")
    assert [row["step"] for row in rows] == [0, 1, 2]
    best = max((1, 2), key=lambda step: rows[step]["score"])
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"exports/step-00000{best}")


@pytest.mark.slow
def test_a_step_left_unmeasured_by_a_stop_is_measured_on_resuming(here: Path, measured: Run) -> None:
    every = {"checkpoint__keep_exports": 5, "checkpoint__every_n_steps": 1}
    measured(name="whole", **every)
    stopper = ("--trainer.callbacks+=helpers.probes.Stopper", "--trainer.callbacks.at=1")
    with pytest.raises(SystemExit):
        measured("fit", *stopper, name="parts", **every)
    assert [row["step"] for row in table(here / "runs/parts")] == [0, 1]
    measured(name="parts", ckpt_path="last", **every)
    assert table(here / "runs/parts") == table(here / "runs/whole")
    metrics = [here / f"runs/{name}/exports/step-000002/validation.json" for name in ("whole", "parts")]
    assert metrics[0].read_bytes() == metrics[1].read_bytes()


@pytest.mark.slow
def test_several_concepts_show_whose_face_appears_under_whose_prompt(here: Path, measured: Run) -> None:
    tiny.images(here / "boy", 3, size_px=48)
    concepts = [
        {"instance_prompt": "a photo of sks girl", "instance_data_dir": "girl", "identifier": "sks",
         "class_prompt": "a photo of a girl", "class_data_dir": "class"},
        {"instance_prompt": "a photo of pink boy", "instance_data_dir": "boy", "identifier": "pink",
         "class_prompt": "a photo of a boy", "class_data_dir": "boys"},
    ]  # fmt: skip
    (here / "concepts.json").write_text(json.dumps(concepts))
    single = ("instance_data_dir", "instance_prompt", "class_data_dir", "class_prompt", "identifier")
    measured(data__concepts_list="concepts.json", **{f"data__{name}": None for name in single})
    row = table(here / "runs/dreambooth")[-1]
    cross = {name for name in row if "_under_" in name}
    assert cross == {f"clip_i/{face}_under_{prompt}" for face in ("sks", "pink") for prompt in ("sks", "pink")}
    assert row["clip_i"] == pytest.approx((row["clip_i/sks_under_sks"] + row["clip_i/pink_under_pink"]) / 2)


@pytest.mark.slow
def test_held_out_images_are_measured_and_not_trained_on(here: Path, measured: Run) -> None:
    tiny.images(here / "more", 2, size_px=50)
    measured(name="with", data__held_out_dir="more")
    measured(name="without")
    on, off = (table(here / "runs" / name) for name in ("with", "without"))
    assert all("loss/held_out" in row for row in on)
    assert [row["loss/instance"] for row in on] == [row["loss/instance"] for row in off]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fidelity__base": "nowhere"}, "nowhere is neither a local folder nor a model"),
        ({"fidelity__clip_model": None, "fidelity__unrelated_prompts": None, "fidelity__patience": 3}, "patience is"),
        ({"fidelity__prompts": "[a photo of a tree]"}, "holds no concept's identifier"),
        ({"fidelity__num_images": 1}, "num_images is 1, must be 2 or more"),
        ({"fidelity__patience": 0}, "patience is 0, must be 1 or more"),
        ({"fidelity__clip_model": "nowhere"}, "clip_model nowhere is neither a local folder nor a model"),
        ({"fidelity__dino": "nowhere"}, "dino nowhere is neither a local folder nor a DINO"),
        ({"fidelity__lpips": "nowhere.pth"}, "nowhere.pth is not a file"),
        ({"fidelity__prompts": "[sks]"}, "empty without its identifier"),
        ({"fidelity__prompts": f"[sks {'girl ' * 60}]"}, "reads 48 tokens"),
        ({"data__held_out_dir": "nothing"}, "nothing is not a folder"),
    ],
)
def test_a_measurement_that_cannot_run_is_refused_in_one_line(
    here: Path, measured: Run, capsys: pytest.CaptureFixture[str], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        measured(**settings)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_one_instance_image_is_too_few_for_a_ceiling(
    here: Path, measured: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "one").mkdir()
    Image.new("RGB", (40, 40), "red").save(here / "one/a.png")
    with pytest.raises(SystemExit):
        measured(data__instance_data_dir="one")
    assert "holds 1 image" in capsys.readouterr().err


def test_validate_without_an_encoder_has_nothing_to_measure_with(
    here: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("validate")
    assert "give fidelity.clip_model or fidelity.dino" in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_architectures_of_clip_dino_and_lpips_measure_a_run(here: Path, run: Run, tmp_path: Path) -> None:
    """ViT-B-32, ViT-S/16 and AlexNet with random weights from local files, in a whole run."""
    clip = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, tmp_path / "b32.safetensors")
    vit = timm.create_model("vit_small_patch16_224.dino", pretrained=False)
    save_for_hf(vit, tmp_path / "dino-vits16", safe_serialization=True)
    encoders = {
        "clip_model": "ViT-B-32-quickgelu", "clip_pretrained": tmp_path / "b32.safetensors",
        "dino": tmp_path / "dino-vits16", "lpips": tiny.alexnet(tmp_path / "alexnet.safetensors"),
    }  # fmt: skip
    flags = {f"fidelity__{name}": value for name, value in encoders.items()}
    tiny.images(here / "large", 3, size_px=80)
    settings = {"data__instance_data_dir": "large", "data__resolution": 64, "data__identifier": "sks"}
    run(**flags, **settings, fidelity__steps=2, fidelity__every_n_steps=2)
    rows = table(here / "runs/dreambooth")
    for name in ("clip_i", "clip_t", "dino", "pres", "drift", "nearest", "div", "score"):
        assert -1 <= rows[-1][name] <= 2
    assert not any("/" in name and not name.startswith(("loss", "score")) for name in rows[-1])
