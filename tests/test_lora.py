"""Adapters from training to their file, and from a file to images and further training, through the command line."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers import tiny
from helpers.probes import scalars
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lightning_dreambooth.errors import TrainingError
from lightning_dreambooth.models.lora import adapted
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.reading_back import check_folder, check_lora_file, expected
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

Run = Callable[..., object]
ADAPTERS = {
    "model__lora__rank": 4, "model__optimizer": "torch.optim.AdamW", "model__optimizer__lr": 1e-2,
    "checkpoint__dtype": "float32", "trainer__max_steps": 6,
}  # fmt: skip
DRAWN = {"samples__prompts": "[a photo of sks girl]", "data__instance_data_dir": None, "data__class_data_dir": None}
LORA = Path("runs/run/exports/step-000006/run-lora.safetensors")


def pixels(name: str) -> np.ndarray:
    return np.asarray(Image.open(next(Path("runs", name).glob("0000-*.png"))), dtype=np.int16)


def difference(a: str, b: str) -> int:
    return int(np.abs(pixels(a) - pixels(b)).max())


def test_a_run_leaves_adapters_alone_and_diffusers_reads_them(
    run: Run, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = run(**ADAPTERS, name="run", model__ema_decay=0.5, model__text_encoder_lr=1e-3)
    assert f"LoRA in {LORA}" in capsys.readouterr().out
    assert {path.name for path in LORA.parent.iterdir()} == {
        "run-lora.safetensors", "README.md", "export.json", "validation.json",
    }  # fmt: skip
    state = torch.load("runs/run/states/step-000006.ckpt", weights_only=True)
    assert all(".lora_" in name or name.startswith("ema.") for name in state["state_dict"])
    frozen = sum(weight.numel() for weight in job.model.model.parameters() if not weight.requires_grad)
    assert sum(weight.numel() for weight in state["state_dict"].values()) < frozen / 2
    curves = scalars(Path("runs/run"))
    assert curves["watch/learning_rate/unet"][-1][1] == pytest.approx(1e-2)
    assert curves["watch/learning_rate/text_encoder"][-1][1] == pytest.approx(1e-3)
    assert curves["watch/weight_change/unet"][-1][1] > curves["watch/weight_change/text_encoder"][-1][1] > 0
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, low_cpu_mem_usage=False)
    pipeline.load_lora_weights(str(LORA.parent), weight_name=LORA.name)
    read = sum(1 for part in (pipeline.unet, pipeline.text_encoder) for _ in adapted(part))
    assert 3 * read == len(load_file(LORA))


@pytest.mark.parametrize("adapters", [{}, ADAPTERS], ids=["all weights", "lora"])
def test_an_export_also_holds_the_whole_model_as_one_file(
    run: Run, monkeypatch: pytest.MonkeyPatch, adapters: dict[str, object]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.cwd() / "home"))
    settings = adapters | {"checkpoint__dtype": "float32", "trainer__max_steps": 6}
    run(**settings, name="run", checkpoint__single_file=True, checkpoint__fused=bool(adapters))
    one, folder = (
        StableDiffusion.load(ModelFiles(str(path))) for path in (LORA.with_name("run.safetensors"), LORA.parent)
    )
    weights = folder.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in one.state_dict().items())


def test_metadata_name_the_base_the_trigger_and_no_place_on_this_machine(run: Run, tiny_sd: Path) -> None:
    run(**ADAPTERS, name="run")
    with safe_open(LORA, "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == "4"
    assert metadata["ss_sd_model_name"] == tiny_sd.name
    assert metadata["modelspec.trigger_phrase"] == "a photo of sks girl"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert not any(str(tiny_sd.parent) in value or str(Path.cwd()) in value for value in metadata.values())


def test_a_file_draws_what_its_run_draws_at_any_scale(run: Run) -> None:
    run(**ADAPTERS, name="run", checkpoint__fused=True)
    shared = DRAWN | {"model__train_text_encoder": None}
    run(
        "predict",
        **DRAWN,
        model__lora__rank=4,
        name="state",
        ckpt_path=LORA.parents[2] / "states/step-000006.ckpt",
    )
    run("predict", **shared, name="file", model__lora=LORA)
    run("predict", **shared, name="fused", model__pretrained=LORA.parent)
    run("predict", **shared, name="base")
    run("predict", **shared, name="nothing", model__lora=LORA, model__lora_scale=0)
    run("predict", **shared, name="half", model__lora=LORA, model__lora_scale=0.5)
    assert difference("file", "state") == 0
    assert difference("file", "fused") <= 1
    assert difference("nothing", "base") == 0
    assert difference("file", "base") > 20
    assert difference("half", "base") > 0
    assert difference("half", "file") > 0
    assert Image.open(next(Path("runs/half").glob("0000-*.png"))).text["model"].endswith("run-lora.safetensors at 0.5")


def test_fit_goes_on_from_a_file(run: Run) -> None:
    last = run(**ADAPTERS, name="run").model.model
    first = run(**ADAPTERS | {"model__lora__rank": None}, name="further", model__lora=LORA)
    grids = [
        np.asarray(Image.open(Path("runs", grid)))
        for grid in ("run/samples/step-000006.png", "further/samples/step-000000.png")
    ]
    assert np.array_equal(*grids)
    for (name, before), (_, after) in zip(adapted(last.unet), adapted(first.model.model.unet), strict=True):
        assert before.r == after.r, name
        assert not torch.equal(before.lora_A["default"].weight, after.lora_A["default"].weight)


def test_validate_compares_a_file_with_its_base(run: Run, small_clip: Path) -> None:
    tiny.subject(Path("girl"), 5)
    run(**ADAPTERS, name="run")
    fidelity = {"fidelity__clip_model": small_clip, "data__identifier": "sks", "fidelity__steps": 2}
    measured = run("validate", **fidelity, name="measured", model__lora=LORA).datamodule
    assert measured is not None
    rows = Path("runs/measured/validation.csv").read_text().splitlines()
    drift = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))["drift/small"]
    assert float(drift) > 0


def test_what_diffusers_does_not_read_back_is_not_kept(run: Run) -> None:
    module = run(**ADAPTERS, name="run", checkpoint__fused=True).model
    tensors, wanted = load_file(LORA), expected(module.model, "a photo of sks girl")
    check_lora_file(wanted, module.files, LORA)
    check_folder(wanted, LORA.parent)
    broken = Path("broken.safetensors")
    unknown = {name.replace("lora_te_text_model", "lora_te_text"): tensor for name, tensor in tensors.items()}
    save_file(unknown, broken)
    with pytest.raises(TrainingError, match=r"is not kept: diffusers (reads|cannot read)"):
        check_lora_file(wanted, module.files, broken)
    save_file({name: tensor * (-1 if "lora_up" in name else 1) for name, tensor in tensors.items()}, broken)
    with pytest.raises(TrainingError, match="differs by"):
        check_lora_file(wanted, module.files, broken)


@pytest.mark.parametrize(("settings", "line"), [
    ({"model__lora__rank": 0}, "model.lora.rank is 0, must lie in 1 ... 1,280"),
    ({"model__lora__alpha": 0}, "model.lora.alpha is 0.0, must be above 0 and finite; null takes the rank"),
    ({"model__lora__targets": "mlp"}, "mlp"),
    ({"model__lora__rank": 4, "model__lora_scale": 0.5}, "model.lora_scale is 0.5, must be 1 for fit"),
    ({"model__lora_scale": 0.5}, "model.lora_scale is 0.5, but there are no adapters; give model.lora"),
    ({"checkpoint__fused": True}, "checkpoint.fused is true, but model.lora is not given"),
    ({"model__lora": "absent.safetensors"}, "absent.safetensors cannot be read as safetensors"),
    ({"model__lora__rank": 4, "model__weight_dtype": "bfloat16"}, "needs trainer.precision bf16-mixed; it is 32-true"),
])  # fmt: skip
def test_wrong_settings_end_in_one_line(complaint: Callable[..., str], settings: dict[str, object], line: str) -> None:
    assert line in complaint(**{"model__optimizer": "torch.optim.AdamW", "model__optimizer__lr": 1e-3} | settings)
    assert not Path("runs").exists()
    assert not Path("class").exists()


@pytest.mark.parametrize(("settings", "line"), [
    ({"model__lora__rank": 8}, "trained with model.lora {'rank': 4"),
    ({"model__lora__alpha": 8}, "trained with model.lora {'rank': 4"),
    ({"model__lora__rank": None}, "this run has None; resume with the model settings it was saved with"),
])  # fmt: skip
def test_adapters_are_not_resumed_with_other_settings(
    run: Run, capsys: pytest.CaptureFixture[str], settings: dict[str, object], line: str
) -> None:
    run(**ADAPTERS, name="run")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(**ADAPTERS | settings | {"trainer__max_steps": 8}, name="run", ckpt_path="last")
    assert stopped.value.code == 2
    (refused,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert line in refused


def test_an_export_that_is_not_read_back_loses_no_training(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightning_dreambooth.models.reading_back.SHARE_OF_PREDICTION", {"fp32": -1})
    monkeypatch.setattr("lightning_dreambooth.models.reading_back.SHARE_OF_CHANGE", -1)
    with pytest.raises(SystemExit) as stopped:
        run(**ADAPTERS, name="run", checkpoint__every_n_steps=2)
    assert stopped.value.code == 1
    assert "run-lora.safetensors is not kept" in capsys.readouterr().err
    assert Path("runs/run/states/step-000002.ckpt").is_file()
    assert not list(Path("runs/run").glob("exports/*"))
    monkeypatch.undo()


def test_a_pipe_is_not_a_lora_file(complaint: Callable[..., str]) -> None:
    os.mkfifo("pipe")
    assert "pipe is not a regular file" in complaint("predict", model__lora="pipe")
