"""The tool `export`, on runs and on models, through the command line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from lightning_dreambooth.cli import exporting
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

Run = Callable[..., object]
LEARNING = {
    "model__optimizer": "torch.optim.AdamW", "model__optimizer__lr": 1e-3, "checkpoint__dtype": "float32",
    "name": "run",
}  # fmt: skip
EXPORT = Path("runs/run/exports/step-000004")


def export(*words: str) -> None:
    exporting.main([*words, "--dtype=float32"])


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        exporting.main([*words])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    return line


@torch.no_grad()
def predict(model: StableDiffusion) -> Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return model.predict(noise, torch.tensor([10]), model.embed(model.tokenize(["a photo of sks girl"])))


def loaded(name: str | Path, lora: Path | None = None) -> Tensor:
    files = ModelFiles(str(name))
    return predict(StableDiffusion.load(files.with_lora(lora, 1.0) if lora else files))


@pytest.mark.parametrize("adapters", [{}, {"model__lora__rank": 3}], ids=["all weights", "lora"])
def test_a_run_becomes_a_folder_a_file_and_a_lora(
    run: Run,
    tiny_sd: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    adapters: dict[str, int],
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path.cwd() / "home"))
    run(**LEARNING | adapters)
    lora = EXPORT / "run-lora.safetensors"
    tuned = loaded(tiny_sd, lora) if adapters else loaded(EXPORT)
    assert (tuned - loaded(tiny_sd)).abs().max() > 1e-3

    export("runs/run", "--format=folder", "--output=out/folder")
    torch.testing.assert_close(loaded("out/folder"), tuned, atol=1e-5, rtol=0)
    export("runs/run", "--format=single_file", "--output=out/one.safetensors")
    torch.testing.assert_close(loaded("out/one.safetensors"), tuned, atol=1e-5, rtol=0)

    # The tiny model's weights have at most 64 rows, so this rank keeps all of a change but that of biases and norms.
    capsys.readouterr()
    export("runs/run", "--format=lora", "--output=out/lora.safetensors", "--rank=64")
    printed = capsys.readouterr().out
    left_out = float(printed.split("weights it leaves out ")[1].split("%")[0])
    assert left_out < (0.1 if adapters else 60)
    error = (loaded(tiny_sd, Path("out/lora.safetensors")) - tuned).norm() / (tuned - loaded(tiny_sd)).norm()
    assert error < (0.001 if adapters else 0.6)
    assert sorted(path.name for path in Path("out").iterdir()) == ["folder", "lora.safetensors", "one.safetensors"]


def test_more_rank_keeps_more_and_frozen_parts_get_no_adapters(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run(**LEARNING | {"model__train_text_encoder": False, "checkpoint__dtype": "float16"})
    capsys.readouterr()
    errors = []
    for rank in (1, 4, 16):
        export(str(EXPORT), "--format=lora", f"--output=rank-{rank}.safetensors", f"--rank={rank}")
        errors.append(float(capsys.readouterr().out.rsplit("prediction ", 1)[1].split("%")[0]))
    assert errors[0] > errors[1] > errors[2]
    assert all(name.startswith("lora_unet_") for name in load_file("rank-1.safetensors"))


def test_a_model_outside_of_a_run_needs_its_base_for_a_lora(
    run: Run, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(**LEARNING)
    shutil.move(EXPORT, "mine")
    words = ("mine", "--format=lora", "--output=x.safetensors")
    assert "give --base" in complaint(capsys, *words)
    exporting.main([*words, f"--base={tiny_sd}"])
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, low_cpu_mem_usage=False)
    pipeline.load_lora_weights("x.safetensors")


def test_what_cannot_be_exported_is_refused_in_a_line(
    run: Run, tiny_sd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tiny_sd)
    assert "has the weights of" in complaint(capsys, base, f"--base={base}", "--format=lora", "--output=x.safetensors")
    assert "must end in .safetensors" in complaint(capsys, base, "--format=single_file", "--output=x")
    assert "girl exists; name another --output" in complaint(capsys, base, "--format=folder", "--output=girl")
    assert "--rank is 0, must lie in 1" in complaint(capsys, base, "--format=folder", "--output=x", "--rank=0")
    assert "tar" in complaint(capsys, base, "--format=tar", "--output=x")
    Path("runs/empty/exports").mkdir(parents=True)
    assert "holds no export" in complaint(capsys, "runs/empty", "--format=folder", "--output=x")
    assert sorted(path.name for path in Path().iterdir()) == ["girl", "runs"]
