"""Single files as people have them: read to the same bits as the folder, or refused in one line."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.single_files import (
    PARTS,
    TEXT,
    TOONBASE,
    UNET,
    VAE,
    Shapes,
    assert_same_bits,
    full_size,
    load,
    metadata_of,
    sparse,
    written,
)
from safetensors.torch import load_file, save_file

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.diffusers_folder import save_folder
from lightning_dreambooth.models.known_models import clip_tokenizer_files, known_configs
from lightning_dreambooth.models.model_files import ModelFiles, locate
from lightning_dreambooth.models.single_file_reading import OWN_KEY, as_folder, cache_folder, config_texts, read_header
from lightning_dreambooth.models.tokens import load_tokenizer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["1.x", "2.x", "toonbase", "tiny"])
def test_a_file_is_the_same_model_as_the_folder_that_it_was_written_from(
    layouts: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    model, read = load(layouts[kind]), load(written(layouts[kind], tmp_path / "x.safetensors"))
    for part in PARTS:
        assert_same_bits(getattr(read, part), getattr(model, part))
    assert torch.equal(read.alphas_bar, model.alphas_bar)
    assert read.prediction_type == model.prediction_type
    assert read.scaling_factor == model.scaling_factor
    prompts = ["a photo of sks girl, in the style", "A girl!", "ugly " * 99]
    assert torch.equal(read.tokenize(prompts).values, model.tokenize(prompts).values)


def test_half_precision_files_load_as_full_precision_masters(tiny_sd: Path, tmp_path: Path) -> None:
    model = load(tiny_sd)
    save_folder(model, tmp_path / "folder", torch.float16)
    read = load(written(tiny_sd, tmp_path / "x.safetensors", torch.float16))
    assert {weight.dtype for weight in read.parameters()} == {torch.float32}
    assert_same_bits(read, load(tmp_path / "folder"))


def test_what_other_programs_leave_in_a_file_changes_nothing(layouts: dict[str, Path], tmp_path: Path) -> None:
    file = written(layouts["1.x"], tmp_path / "x.safetensors")
    tensors, level = load_file(file), f"{TEXT}transformer.text_model."
    early = {name.replace(level, level.removesuffix("text_model.")): value for name, value in tensors.items()}
    flat = {name: value.reshape(value.shape[:2]) if ".attn_1." in name and value.ndim == 4 else value.clone()
            for name, value in early.items()}  # fmt: skip
    ours = next(name for name in tensors if name.startswith(UNET))
    rest = {
        f"{level}embeddings.position_ids": torch.arange(77).float()[None], "global_step": torch.tensor(470000),
        "model_ema.decay": torch.tensor(0.9), "alphas_cumprod": torch.ones(1000),
        f"model_ema.diffusion_model{ours.removeprefix(UNET).replace('.', '')}": tensors[ours] + 1,
    }  # fmt: skip
    save_file(flat | rest, tmp_path / "other.safetensors", metadata_of(file))
    assert_same_bits(load(tmp_path / "other.safetensors"), load(layouts["1.x"]))


def test_a_second_read_converts_nothing(
    layouts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(layouts["2.x"], tmp_path / "x.safetensors")
    first = as_folder(file)
    assert capsys.readouterr().out == f"{file} is converted, once, to {first}\n"
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert locate(str(file)) == first
    assert as_folder(Path(shutil.copy(file, tmp_path / "y.safetensors"))) == first
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times
    assert capsys.readouterr().out == ""
    assert ModelFiles(str(file)).fingerprint == ModelFiles(str(first)).fingerprint


def test_a_conversion_that_was_killed_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    file = written(TOONBASE, tmp_path / "x.safetensors")
    process = multiprocessing.get_context("fork").Process(target=as_folder, args=(file,))
    process.start()
    while process.is_alive() and not [*cache_folder().glob(".*.part/unet/*.safetensors")]:
        time.sleep(0.001)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    left = [path.name for path in cache_folder().iterdir() if path.is_dir()]
    assert len(left) == 1
    assert left[0].endswith(".part")
    assert_same_bits(load(file), load(TOONBASE))
    assert [path.name for path in cache_folder().iterdir() if path.is_dir()] == [as_folder(file).name]


def test_two_processes_convert_once(
    layouts: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = written(layouts["2.x"], tmp_path / "x.safetensors")
    processes = [multiprocessing.get_context("fork").Process(target=as_folder, args=(file,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert capfd.readouterr().out.count("is converted, once, to") == 1
    assert_same_bits(load(file), load(layouts["2.x"]))


def without(prefix: str) -> Callable[[Shapes], Shapes]:
    return lambda shapes: {name: shape for name, shape in shapes.items() if not name.startswith(prefix)}


FIRST, ATTENTION = f"{UNET}input_blocks.0.0.weight", "transformer_blocks.0.attn2.to_k.weight"
REFUSED: dict[str, tuple[Callable[[Shapes], Shapes], str]] = {
    "SDXL": (lambda s: s | {"conditioner.embedders.1.model.ln_final.bias": [1280]}, "as of Stable Diffusion XL"),
    "SDXL's UNet": (lambda s: s | {f"{UNET}label_emb.0.0.weight": [1280, 2816]}, "as of Stable Diffusion XL, unCLIP"),
    "SD 3": (lambda s: {f"{UNET}joint_blocks.0.context_block.mlp.fc1.weight": [1, 1]}, "as of Stable Diffusion 3"),
    "Flux": (lambda s: {"double_blocks.0.img_attn.qkv.weight": [1, 1]}, "as of Flux"),
    "ControlNet": (lambda s: {"control_model.input_blocks.0.0.weight": [1, 4, 3, 3]}, "as of ControlNet"),
    "inpainting": (lambda s: s | {FIRST: [320, 9, 3, 3]}, "reads 9 channels .* as models for inpainting"),
    "InstructPix2Pix": (lambda s: s | {FIRST: [320, 8, 3, 3]}, "reads 8 channels .* image editing"),
    "a LoRA": (lambda s: {"lora_unet_mid_block.lora_down.weight": [4, 320]}, "is a LoRA"),
    "a VAE": (lambda s: {name.removeprefix(VAE): shape for name, shape in s.items() if VAE in name}, "of one part"),
    "no VAE": (without(VAE), r"holds no VAE \(first_stage_model\..*give a file with all parts"),
    "no text encoder": (without(TEXT), r"holds no text encoder \(cond_stage_model"),
    "one weight missing": (without(f"{UNET}out.2.bias"), r"lacks 1 weights of its UNet, such as .*out\.2\.bias"),
    "one weight more": (lambda s: s | {f"{UNET}middle_block.3.x": [1]}, r"has 1 weights more, such as .*block\.3\.x"),
    "another size": (lambda s: s | {FIRST: [64, 4, 3, 3]}, r"shape \[64, 4, 3, 3\], \[320, 4, 3, 3\] is needed"),
    "a number for a layer": (lambda s: s | {FIRST: []}, r"shape \[\], \[320, 4, 3, 3\] is needed"),
    "another width": (lambda s: s | {f"{UNET}input_blocks.1.1.{ATTENTION}": [320, 512]}, "reads prompts 512 wide"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_every_other_file_is_refused_in_one_line_from_its_header(tmp_path: Path, kind: str) -> None:
    change, message = REFUSED[kind]
    file = sparse(tmp_path / "x.safetensors", change(full_size(768)))
    with pytest.raises(InputError, match=message) as refused:
        locate(str(file))
    assert "\n" not in str(refused.value)
    assert str(file) in str(refused.value)
    assert not cache_folder().exists()


@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("text", ["no JSON", "[1]", '{"block_out_channels": ["x"], "model": 5, "beta_schedule": "x"}'])
def test_broken_configs_in_a_file_are_refused_and_leave_nothing(
    tiny_sd: Path, tmp_path: Path, name: str, text: str
) -> None:
    file = written(tiny_sd, tmp_path / "x.safetensors")
    save_file(load_file(file), file, metadata_of(file) | {OWN_KEY + name: text})
    with pytest.raises(InputError) as refused:
        locate(str(file))
    assert "\n" not in str(refused.value)
    assert str(file) in str(refused.value)
    assert [path for path in cache_folder().glob("*") if path.is_dir()] == []


@pytest.mark.parametrize(("part", "key"), [
    ("unet", "layers_per_block"), ("vae", "layers_per_block"), ("text_encoder", "num_hidden_layers"),
])  # fmt: skip
def test_a_config_with_more_layers_than_tensors_is_not_built(
    tiny_sd: Path, tmp_path: Path, part: str, key: str
) -> None:
    file = written(tiny_sd, tmp_path / "x.safetensors")
    config = json.loads((tiny_sd / part / "config.json").read_text()) | {key: 1_000_000}
    save_file(load_file(file), file, metadata_of(file) | {f"{OWN_KEY}{part}/config.json": json.dumps(config)})
    with pytest.raises(InputError, match=rf"{key} of its .* is 1,000,000, but it has \d+ tensors"):
        locate(str(file))


def test_a_converted_folder_of_which_files_are_gone_says_what_to_remove(tiny_sd: Path, tmp_path: Path) -> None:
    file = written(tiny_sd, tmp_path / "x.safetensors")
    (as_folder(file) / "unet/config.json").unlink()
    with pytest.raises(InputError, match=r"lacks unet/config\.json; remove the folder"):
        locate(str(file))


def test_a_damaged_file_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    file = written(tiny_sd, tmp_path / "x.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        locate(str(file))


def test_clips_tokenizer_gives_the_known_ids(tmp_path: Path) -> None:
    for width, padding in ((768, 49407), (1024, 0)):
        config = known_configs(width, "epsilon", 4)["tokenizer/tokenizer_config.json"]
        for name, text in (clip_tokenizer_files() | {"tokenizer/tokenizer_config.json": json.dumps(config)}).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text, encoding="utf-8")
        tokenizer = load_tokenizer(tmp_path)
        ids = tokenizer("A photo of a  cat", padding="max_length").input_ids
        assert ids == [49406, 320, 1125, 539, 320, 2368, 49407, *[padding] * 70]
        assert tokenizer("sks café, 21").input_ids[1:-1] == [48136, 15304, 267, 273, 272]


BIAS = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.mark.parametrize(
    ("width", "metadata", "bias_std", "more", "expected"),
    [
        (768, {}, 1.0, {}, ("epsilon", 64)),
        (768, {"modelspec.prediction_type": "v"}, 0.0, {}, ("v_prediction", 64)),
        (1024, {}, 0.05, {}, ("epsilon", 64)),
        (1024, {}, 0.15, {}, ("v_prediction", 96)),
        (1024, {"modelspec.prediction_type": "epsilon"}, 0.15, {}, ("epsilon", 64)),
        (1024, {"modelspec.predict_key": "v"}, 0.0, {}, ("v_prediction", 96)),
        (1024, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, 0.0, {}, ("v_prediction", 96)),
        (1024, {}, 0.0, {"v_pred": [0]}, ("v_prediction", 96)),
    ],
)
def test_what_a_file_of_true_size_predicts_is_told_without_configs(
    tmp_path: Path, width: int, metadata: dict[str, str], bias_std: float, more: Shapes, expected: tuple[str, int]
) -> None:
    # The bias comes first, so that its numbers stand right behind the header.
    shapes = {BIAS: [320], **{name: shape for name, shape in full_size(width).items() if name != BIAS}, **more}
    file = sparse(tmp_path / "x.safetensors", shapes, metadata)
    bias = torch.tensor([-bias_std, bias_std]).repeat(160).half()
    with file.open("r+b") as opened:
        opened.seek(8 + int.from_bytes(opened.read(8), "little"))
        opened.write(bias.numpy().tobytes())
    texts = config_texts(file, read_header(file))
    scheduler, unet = (json.loads(texts[name]) for name in ("scheduler/scheduler_config.json", "unet/config.json"))
    assert (scheduler["prediction_type"], unet["sample_size"]) == expected
    assert unet["cross_attention_dim"] == width
