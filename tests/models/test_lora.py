"""Adapters: what they compute, what is drawn and saved of them, and what other libraries read."""

import itertools
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.lora import (
    Lora,
    adapted,
    add_adapters,
    fused,
    relative_change,
    scale_adapters,
    without_adapters,
)
from lightning_dreambooth.models.lora_files import check_lora, lora_tensors, read_lora, save_lora
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion
from lightning_dreambooth.models.trained_parts import Training, prepare

KINDS = [Lora(4, 6.0, targets, dora) for targets, dora in itertools.product(("attention", "all"), (False, True))]
each_kind = pytest.mark.parametrize("lora", KINDS, ids=lambda lora: f"{lora.targets}{'-dora' * lora.dora}")


def parts_of(model: StableDiffusion) -> dict[str, nn.Module]:
    return {"unet": model.unet, "text_encoder": model.text_encoder}


def with_adapters(model: StableDiffusion, lora: Lora, seed: int = 0) -> StableDiffusion:
    for name, part in parts_of(model).items():
        add_adapters(part, name, lora, seed)
    return model


def trained(model: StableDiffusion, lora: Lora) -> StableDiffusion:
    """With adapters that change the model."""
    with_adapters(model, lora)
    torch.manual_seed(0)
    for part in parts_of(model).values():
        for name, weight in part.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(weight, std=0.3)
            elif "magnitude" in name:
                weight.data *= 1.3
    return model


@torch.no_grad()
def predict(model: StableDiffusion) -> Tensor:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return model.predict(noise, torch.tensor([10]), model.embed(model.tokenize(["a photo of sks girl"]))).clone()


@each_kind
def test_an_untrained_adapter_changes_nothing(model: StableDiffusion, lora: Lora) -> None:
    before = predict(model)
    assert torch.equal(predict(with_adapters(model, lora)), before)
    assert relative_change(model.unet) == 0


@each_kind
def test_without_adapters_a_part_computes_what_its_base_does(model: StableDiffusion, lora: Lora) -> None:
    before = predict(model)
    trained(model, lora)
    assert (predict(model) - before).abs().max() > 0.1
    with without_adapters(model):
        assert torch.equal(predict(model), before)


@each_kind
@pytest.mark.parametrize("scale", [0.0, 0.7, 1.0])
def test_a_file_is_added_to_the_weights_at_a_scale(
    model: StableDiffusion, tiny_sd: Path, tmp_path: Path, lora: Lora, scale: float
) -> None:
    base_weights = {name: {**part.state_dict()} for name, part in parts_of(model).items()}
    trained(model, lora)
    save_lora(parts_of(model), tmp_path / "lora.safetensors", torch.float32, {})
    base = ModelFiles(str(tiny_sd))
    files = base.with_lora(tmp_path / "lora.safetensors", scale)
    loaded = StableDiffusion.load(files)
    assert not any(any(adapted(part)) or part.training for part in parts_of(loaded).values())
    if not lora.dora:  # W + scale * alpha / r * B A
        for name, part in parts_of(model).items():
            before, whole = base_weights[name], fused(part)
            for key, weight in parts_of(loaded)[name].state_dict().items():
                wanted = before[key] + scale * (whole[key] - before[key])
                torch.testing.assert_close(weight, wanted, atol=1e-5, rtol=0)
    for part in parts_of(model).values():
        scale_adapters(part, scale)
    torch.testing.assert_close(predict(loaded), predict(model), atol=1e-5, rtol=0)
    fingerprints = {each.fingerprint for each in (base, files, base.with_lora(tmp_path / "lora.safetensors", 0.5))}
    assert len(fingerprints) == 3


@each_kind
def test_fused_weights_compute_what_the_adapters_do(model: StableDiffusion, tiny_sd: Path, lora: Lora) -> None:
    trained(model, lora)
    expected = predict(model)
    plain = StableDiffusion.load(ModelFiles(str(tiny_sd)))
    for name, part in parts_of(plain).items():
        before = {key: value.clone() for key, value in part.state_dict().items()}
        part.load_state_dict(fused(parts_of(model)[name]))
        moved = torch.cat([(value - before[key]).flatten() for key, value in part.state_dict().items()]).norm()
        size = torch.cat([value.flatten() for value in before.values()]).norm()
        assert relative_change(parts_of(model)[name]).item() == pytest.approx((moved / size).item(), rel=1e-4)
    torch.testing.assert_close(predict(plain), expected, atol=1e-5, rtol=0)
    assert torch.equal(predict(model), expected)  # fusing has changed nothing


@pytest.mark.parametrize("text_encoder", [False, True])
def test_only_adapters_are_trained(model: StableDiffusion, text_encoder: bool) -> None:
    by_part = prepare(model, Training(text_encoder, False, Lora(4), 1.0, torch.float32, 0))
    assert list(by_part) == ["unet", "text_encoder"][: 1 + text_encoder]
    for name, weight in model.named_parameters():
        part, _, key = name.partition(".")
        assert weight.requires_grad == (key in by_part.get(part, {})) == (".lora_" in name)


def test_frozen_weights_lie_in_bf16_and_everything_else_in_fp32(model: StableDiffusion, tmp_path: Path) -> None:
    save_lora({"unet": with_adapters(model, Lora(4)).unet}, tmp_path / "half.safetensors", torch.float16, {})
    fresh = StableDiffusion.load(ModelFiles(str(model.folder)))
    prepare(fresh, Training(False, False, tmp_path / "half.safetensors", 1.0, torch.bfloat16, 0))
    in_bf16 = {name for name, weight in fresh.named_parameters() if weight.dtype == torch.bfloat16}
    assert in_bf16
    for name, weight in fresh.named_parameters():
        layer = fresh.get_submodule(name.rpartition(".")[0])
        frozen = name.endswith("weight") and isinstance(layer, nn.Linear | nn.Conv2d) and not weight.requires_grad
        assert (name in in_bf16) == (frozen and not name.startswith("vae.")), name
        assert weight.dtype == torch.float32 or not weight.requires_grad


def test_adapters_are_a_function_of_the_seed(tiny_sd: Path) -> None:
    models = [with_adapters(StableDiffusion.load(ModelFiles(str(tiny_sd))), Lora(4), seed) for seed in (1, 1, 2)]
    drawn = [lora_tensors(parts_of(model)) for model in models]
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    downs = [name for name in drawn[0] if "lora_down" in name]
    assert not any(torch.equal(drawn[0][name], drawn[2][name]) for name in downs)
    assert len({drawn[0][name].flatten()[0].item() for name in downs}) == len(downs)


@each_kind
def test_diffusers_reads_every_key_of_a_file_and_computes_the_same(
    model: StableDiffusion, tiny_sd: Path, tmp_path: Path, lora: Lora
) -> None:
    trained(model, lora)
    save_lora(parts_of(model), tmp_path / "lora.safetensors", torch.float32, {})
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, low_cpu_mem_usage=False)
    pipeline.load_lora_weights(str(tmp_path / "lora.safetensors"))
    read = [layer for part in (pipeline.unet, pipeline.text_encoder) for _, layer in adapted(part)]
    assert 3 * len(read) == len(lora_tensors(parts_of(model)))  # A, B, and alpha or the norms
    ids = model.tokenize(["a photo of sks girl"]).values
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = pipeline.unet(noise, torch.tensor([10]), pipeline.text_encoder(ids)[0]).sample
    torch.testing.assert_close(predict(model), theirs, atol=1e-5, rtol=0)


def write_every_layout(model: StableDiffusion, folder: Path) -> list[Path]:
    """The adapters of a model in the layouts that people have: ours, diffusers' old and new one, kohya's with `te1`."""
    save_lora(parts_of(model), folder / "ours.safetensors", torch.float32, {})
    unet, text = (get_peft_model_state_dict(part, adapter_name="default") for part in parts_of(model).values())
    text = {f"text_model.{name}": value for name, value in text.items()}
    write = StableDiffusionPipeline.save_lora_weights
    write(folder, unet, text, weight_name="peft.safetensors")
    old = [convert_state_dict_to_diffusers(tensors) for tensors in (unet, text)]
    write(folder, *old, weight_name="diffusers.safetensors")
    renamed = {name.replace("lora_te_", "lora_te1_"): value for name, value in lora_tensors(parts_of(model)).items()}
    save_file(renamed, folder / "te1.safetensors")
    return sorted(folder.glob("*.safetensors"))


def test_a_file_of_any_layout_gives_the_adapters_back(model: StableDiffusion, tiny_sd: Path, tmp_path: Path) -> None:
    trained(model, Lora(4, 4.0, "attention"))
    files = write_every_layout(model, tmp_path)
    assert len(files) == 4
    for file in files:
        other = StableDiffusion.load(ModelFiles(str(tiny_sd)))
        read_lora(parts_of(other), file)
        assert torch.equal(predict(other), predict(model)), file.name


def test_a_file_that_is_no_lora_of_this_base_ends_in_one_line(
    model: StableDiffusion, tiny_sd: Path, tmp_path: Path
) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        read_lora(parts_of(model), file)
    save_file({"conv_in.weight": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="holds no LoRA"):
        read_lora(parts_of(model), file)
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1), "lora_unet_x.dora_scale": torch.zeros(1)}, file)
    with pytest.raises(InputError, match="is a DoRA in kohya's layout"):
        read_lora(parts_of(model), file)
    trained(model, Lora(4))
    tensors = lora_tensors(parts_of(model))
    key = next(name for name in tensors if "lora_down" in name)
    wrong = {"wider": {key: torch.zeros(4, 7)}, "unknown": {f"lora_unet_no_{key[10:]}": tensors[key].clone()}}
    for name, tensor in wrong.items():
        content = tensors | tensor
        save_file(content, file)
        with pytest.raises(InputError, match=r"does not fit|of which this base model has|lacks") as refused:
            check_lora(file, ModelFiles(str(tiny_sd)), None)
        assert "\n" not in str(refused.value), name
        with pytest.raises(InputError, match=r"does not fit|of which this base model has|lacks"):
            read_lora(parts_of(StableDiffusion.load(ModelFiles(str(tiny_sd)))), file)


def test_names_in_a_file_are_those_that_kohya_and_comfyui_look_for(model: StableDiffusion, tmp_path: Path) -> None:
    """As in networks/lora.py of kohya-ss/sd-scripts and comfy/lora.py of ComfyUI, for Stable Diffusion 1.x."""
    trained(model, Lora(4, 6.0, "all"))
    save_lora(parts_of(model), tmp_path / "lora.safetensors", torch.float16, {"modelspec.title": "x"})
    tensors = load_file(tmp_path / "lora.safetensors")
    layers = {name.partition(".")[0] for name in tensors}
    assert {name.partition(".")[2] for name in tensors} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert {
        "lora_te_text_model_encoder_layers_0_self_attn_out_proj",
        "lora_te_text_model_encoder_layers_1_mlp_fc1", "lora_unet_down_blocks_0_attentions_0_proj_in",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj", "lora_unet_mid_block_resnets_0_conv1",
        "lora_unet_down_blocks_0_downsamplers_0_conv",
    } <= layers  # fmt: skip
    key = "lora_unet_mid_block_resnets_0_conv1"
    assert torch.equal(tensors[f"{key}.alpha"], torch.tensor(6.0))
    assert tensors[f"{key}.lora_down.weight"].shape[0] == tensors[f"{key}.lora_up.weight"].shape[1] == 4
    assert tensors[f"{key}.lora_down.weight"].dtype == torch.float16


def test_a_file_is_checked_against_the_parts_that_are_trained(
    model: StableDiffusion, tiny_sd: Path, tmp_path: Path
) -> None:
    file = tmp_path / "unet.safetensors"
    save_lora({"unet": trained(model, Lora(4)).unet}, file, torch.float32, {})
    check_lora(file, ModelFiles(str(tiny_sd)), None)
    check_lora(file, ModelFiles(str(tiny_sd)), False)
    with pytest.raises(InputError, match=r"does not adapt the text encoder; set model.train_text_encoder to false"):
        check_lora(file, ModelFiles(str(tiny_sd)), True)
    save_lora({"text_encoder": model.text_encoder}, file, torch.float32, {})
    with pytest.raises(InputError, match=r"does not adapt the UNet"):
        check_lora(file, ModelFiles(str(tiny_sd)), True)
