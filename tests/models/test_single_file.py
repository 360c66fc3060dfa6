"""Single files in the original layout: written as diffusers, ComfyUI and kohya read them, and read to the same bits."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from helpers import tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.known_models import clip_tokenizer_files, known_configs
from lightning_dreambooth.models.model_files import ModelFiles, locate
from lightning_dreambooth.models.original_layout import places
from lightning_dreambooth.models.single_file import save_single_file, single_file_tensors
from lightning_dreambooth.models.single_file_reading import OWN_KEY, as_folder, cache_folder, config_texts, read_header
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.models.tokens import load_tokenizer

TOONBASE = Path(__file__).parents[2] / "checkpoints/toonbase"
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
PARTS = ("unet", "vae", "text_encoder")
Shapes = dict[str, list[int]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def small(folder: Path, version: int) -> Path:
    """A model in the layout of Stable Diffusion 1.5 or 2.1, all of its blocks, with few channels."""
    torch.manual_seed(version)
    words = tiny.tokenizer(folder / "words")
    widths, levels = (32, 32, 64, 64), 4
    StableDiffusionPipeline(
        unet=UNet2DConditionModel(
            sample_size=8, block_out_channels=widths, cross_attention_dim=32, norm_num_groups=8,
            attention_head_dim=8 if version == 1 else (1, 1, 2, 2), use_linear_projection=version == 2,
        ),
        vae=AutoencoderKL(
            block_out_channels=(8, 16, 32, 32), norm_num_groups=8, layers_per_block=2, sample_size=64,
            down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
                max_position_embeddings=tiny.TOKENS, hidden_act="quick_gelu" if version == 1 else "gelu",
                bos_token_id=0, eos_token_id=2, pad_token_id=1,
            )
        ),
        tokenizer=words,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
            set_alpha_to_one=False, prediction_type="epsilon" if version == 1 else "v_prediction",
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("layouts")
    return {"1.x": small(made / "one", 1), "2.x": small(made / "two", 2), "toonbase": TOONBASE, "tiny": tiny_sd}


def load(name: Path) -> StableDiffusion:
    return StableDiffusion.load(ModelFiles(str(name)))


def written(folder: Path, file: Path, dtype: torch.dtype = torch.float32) -> Path:
    save_single_file(load(folder), file, dtype)
    return file


def assert_same_bits(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


@pytest.mark.parametrize("kind", ["1.x", "2.x", "toonbase", "tiny"])
def test_diffusers_reads_a_file_back_to_the_bit(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    file = written(folders[kind], tmp_path / "x.safetensors")
    read = StableDiffusionPipeline.from_single_file(str(file), config=str(folders[kind]), local_files_only=True)
    model = load(folders[kind])
    for part in PARTS:
        assert_same_bits(getattr(read, part), getattr(model, part))


@pytest.mark.parametrize("kind", ["1.x", "2.x", "toonbase", "tiny"])
def test_a_file_is_the_same_model_as_the_folder_that_it_was_written_from(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    model, read = load(folders[kind]), load(written(folders[kind], tmp_path / "x.safetensors"))
    for part in PARTS:
        assert_same_bits(getattr(read, part), getattr(model, part))
    assert torch.equal(read.alphas_bar, model.alphas_bar)
    assert read.prediction_type == model.prediction_type
    assert read.scaling_factor == model.scaling_factor
    prompts = ["a photo of sks girl, in the style", "A girl!", "ugly " * 99]
    assert torch.equal(read.tokenize(prompts).values, model.tokenize(prompts).values)


def resnet(block: str, shortcut: bool) -> list[str]:
    layers = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
    return [f"{block}.{layer}" for layer in layers + ["skip_connection"] * shortcut]


def transformer(block: str) -> list[str]:
    inner = [f"attn{number}.{layer}" for number in (1, 2) for layer in ("to_q!", "to_k!", "to_v!", "to_out.0")]
    inner += ["norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"]
    return [f"{block}.{layer}" for layer in ["norm", "proj_in", "proj_out"]] + [
        f"{block}.transformer_blocks.0.{layer}" for layer in inner
    ]


def vae_block(block: str, shortcut: bool) -> list[str]:
    return [f"{block}.{layer}" for layer in ["norm1", "conv1", "norm2", "conv2"] + ["nin_shortcut"] * shortcut]


def names_of_sd15() -> set[str]:
    """The names of weights in v1-5-pruned-emaonly.safetensors, block by block; `!` marks layers without bias."""
    layers = [f"{UNET}{name}" for name in ("time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2")]
    for i in (1, 2, 4, 5, 7, 8, 10, 11):
        layers += resnet(f"{UNET}input_blocks.{i}.0", shortcut=i in (4, 7))
        layers += transformer(f"{UNET}input_blocks.{i}.1") if i < 9 else []
    layers += [f"{UNET}input_blocks.{i}.0.op" for i in (3, 6, 9)]
    layers += resnet(f"{UNET}middle_block.0", False) + transformer(f"{UNET}middle_block.1")
    layers += resnet(f"{UNET}middle_block.2", False)
    for i in range(12):
        layers += resnet(f"{UNET}output_blocks.{i}.0", True)
        layers += transformer(f"{UNET}output_blocks.{i}.1") if i > 2 else []
    layers += [f"{UNET}output_blocks.{place}.conv" for place in ("2.1", "5.2", "8.2")]
    layers += [f"{VAE}{name}" for name in ("quant_conv", "post_quant_conv")]
    for side in ("encoder", "decoder"):
        layers += [f"{VAE}{side}.{name}" for name in ("conv_in", "norm_out", "conv_out")]
        layers += [f"{VAE}{side}.mid.attn_1.{name}" for name in ("norm", "q", "k", "v", "proj_out")]
        layers += [name for i in (1, 2) for name in vae_block(f"{VAE}{side}.mid.block_{i}", False)]
    for level in range(4):
        for i in range(2):
            layers += vae_block(f"{VAE}encoder.down.{level}.block.{i}", level in (1, 2) and i == 0)
        for i in range(3):
            layers += vae_block(f"{VAE}decoder.up.{level}.block.{i}", level in (0, 1) and i == 0)
    layers += [f"{VAE}encoder.down.{level}.downsample.conv" for level in range(3)]
    layers += [f"{VAE}decoder.up.{level}.upsample.conv" for level in (1, 2, 3)]
    text = f"{TEXT}transformer.text_model."
    for i in range(12):
        inner = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
        inner += [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")]
        layers += [f"{text}encoder.layers.{i}.{name}" for name in inner]
    layers += [f"{text}final_layer_norm", f"{text}embeddings.token_embedding!", f"{text}embeddings.position_embedding!"]
    weights = {f"{layer.rstrip('!')}.weight" for layer in layers}
    return weights | {f"{layer}.bias" for layer in layers if not layer.endswith("!")}


@cache
def full_size(width: int) -> Shapes:
    """Names and shapes of a file of Stable Diffusion 1.x (width 768) or 2.x (1024) in its true size."""
    configs = known_configs(width, "epsilon", 4)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(configs["unet/config.json"])
        vae = AutoencoderKL.from_config(configs["vae/config.json"])
        text = CLIPTextModel(CLIPTextConfig.from_dict(configs["text_encoder/config.json"]))
    return {name: list(value.shape) for name, value in meta_tensors(unet, vae, text).items()}


def meta_tensors(*modules: torch.nn.Module) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for part, module in zip(PARTS, modules, strict=True):
        state = module.state_dict()
        config = module.config.to_dict() if part == "text_encoder" else module.config
        for name, (original, third) in places(part, state, config).items():
            value = state[name] if third is None else torch.cat([state[name]] * 3)
            found[original] = value[..., None, None] if ".attn_1." in original and value.ndim == 2 else value
    return found


def sparse(file: Path, shapes: Shapes, metadata: dict[str, str] | None = None) -> Path:
    """A file of these shapes in fp16 that is all zeros and takes no room on the disk."""
    header: dict[str, object] = {"__metadata__": metadata or {}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    content = json.dumps(header).encode()
    content = content.ljust(-(-len(content) // 8) * 8)
    with file.open("wb") as opened:
        opened.write(len(content).to_bytes(8, "little") + content)
        opened.truncate(8 + len(content) + end)
    return file


def test_the_names_are_those_of_sd15s_own_file() -> None:
    names = full_size(768)
    assert names.keys() == names_of_sd15()
    counts = [sum(name.startswith(prefix) for name in names) for prefix in (UNET, VAE, TEXT)]
    assert counts == [686, 248, 196]
    assert names[f"{UNET}input_blocks.4.0.skip_connection.weight"] == [640, 320, 1, 1]
    assert names[f"{UNET}output_blocks.5.2.conv.weight"] == [1280, 1280, 3, 3]


def test_openclips_names_join_queries_keys_and_values() -> None:
    names = full_size(1024)
    text = sorted(name.removeprefix(f"{TEXT}model.") for name in names if name.startswith(TEXT))
    assert len(text) == 23 * 12 + 4
    block = {name.removeprefix("transformer.resblocks.22.") for name in text if ".22." in name}
    layers = ["attn.in_proj_", "attn.out_proj.", "ln_1.", "ln_2.", "mlp.c_fc.", "mlp.c_proj."]
    assert block == {layer + leaf for layer in layers for leaf in ("weight", "bias")}
    others = {"token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias"}
    assert {name for name in text if "resblocks" not in name} == others
    assert names[f"{TEXT}model.transformer.resblocks.0.attn.in_proj_weight"] == [3072, 1024]


@pytest.mark.parametrize(("kind", "dims"), [("1.x", 4), ("2.x", 2)])
def test_shapes_are_those_of_the_original(folders: dict[str, Path], kind: str, dims: int) -> None:
    model = load(folders[kind])
    tensors = single_file_tensors(model.unet, model.vae, model.text_encoder)
    assert tensors[f"{UNET}input_blocks.1.1.proj_in.weight"].ndim == dims
    for layer in ("q", "k", "v", "proj_out"):
        assert tensors[f"{VAE}encoder.mid.attn_1.{layer}.weight"].shape == (32, 32, 1, 1)
        assert tensors[f"{VAE}encoder.mid.attn_1.{layer}.bias"].shape == (32,)


def test_metadata_say_what_the_model_is(folders: dict[str, Path], tmp_path: Path) -> None:
    said = {kind: metadata_of(written(folders[kind], tmp_path / f"{kind}.safetensors")) for kind in folders}
    keys = ("architecture", "prediction_type", "resolution", "sai_model_spec", "title")
    facts = {kind: [entries[f"modelspec.{key}"] for key in keys] for kind, entries in said.items()}
    assert facts["1.x"] == ["stable-diffusion-v1", "epsilon", "64x64", "1.0.0", "1.x"]
    assert facts["2.x"] == ["stable-diffusion-v2-768-v", "v", "64x64", "1.0.0", "2.x"]
    assert json.loads(said["toonbase"]["lightning_dreambooth.vae/config.json"])["scaling_factor"] == 0.8959436070651375
    for kind, entries in said.items():
        assert not any(str(folders[kind].parent) in text for text in entries.values())


def test_a_tokenizers_place_on_disk_is_not_written(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["1.x"], tmp_path / "copy"))
    config = folder / "tokenizer/tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"name_or_path": "/home/somebody/words"}))
    assert "somebody" not in str(metadata_of(written(folder, tmp_path / "x.safetensors")))


def test_the_callers_metadata_come_first(model: StableDiffusion, tmp_path: Path) -> None:
    save_single_file(model, tmp_path / "x.safetensors", torch.float16, {"modelspec.title": "Toon, ✓", "other": "1"})
    entries = metadata_of(tmp_path / "x.safetensors")
    assert (entries["modelspec.title"], entries["other"]) == ("Toon, ✓", "1")


def test_equal_models_give_equal_bytes_in_every_process(tiny_sd: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for name in ("a", "b"):
        process = context.Process(target=written, args=(tiny_sd, tmp_path / name / "x.safetensors"))
        process.start()
        process.join()
    assert (tmp_path / "a/x.safetensors").read_bytes() == (tmp_path / "b/x.safetensors").read_bytes()


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


def test_half_precision_files_load_as_full_precision_masters(tiny_sd: Path, tmp_path: Path) -> None:
    model = load(tiny_sd)
    model.save(tmp_path / "folder", torch.float16)
    read = load(written(tiny_sd, tmp_path / "x.safetensors", torch.float16))
    assert {weight.dtype for weight in read.parameters()} == {torch.float32}
    assert_same_bits(read, load(tmp_path / "folder"))


def test_what_other_programs_leave_in_a_file_changes_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    file = written(folders["1.x"], tmp_path / "x.safetensors")
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
    assert_same_bits(load(tmp_path / "other.safetensors"), load(folders["1.x"]))


def test_a_second_read_converts_nothing(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(folders["2.x"], tmp_path / "x.safetensors")
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
    folders: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = written(folders["2.x"], tmp_path / "x.safetensors")
    processes = [multiprocessing.get_context("fork").Process(target=as_folder, args=(file,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert capfd.readouterr().out.count("is converted, once, to") == 1
    assert_same_bits(load(file), load(folders["2.x"]))


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
    assert [path for path in cache_folder().glob("*") if path.is_dir()] == []


def test_a_damaged_file_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    file = written(tiny_sd, tmp_path / "x.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        locate(str(file))


def test_blocks_without_names_in_the_original_layout_are_refused(folders: dict[str, Path]) -> None:
    model = load(folders["1.x"])
    model.unet.register_to_config(mid_block_type="UNetMidBlock2DSimpleCrossAttn")
    with pytest.raises(InputError, match="no names for blocks of the kind UNetMidBlock2DSimpleCrossAttn"):
        single_file_tensors(model.unet, model.vae, model.text_encoder)


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
