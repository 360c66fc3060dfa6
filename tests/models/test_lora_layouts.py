"""LoRA files as others write them, against W + alpha / r * B A computed here."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_dreambooth.errors import InputError
from lightning_dreambooth.models.lora import TARGETS, fused
from lightning_dreambooth.models.lora_files import read_lora, save_lora
from lightning_dreambooth.models.lora_layouts import read_tensors
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}


def layers(part: nn.Module) -> dict[str, nn.Module]:
    """The layers of a part that others adapt, by name."""
    return {
        name: layer
        for name, layer in part.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and any(name.endswith(f".{end}") for end in TARGETS["all"])
    }


def made_by_kohya(
    model: StableDiffusion, rank: Callable[[int], int], alpha: Callable[[int], float | None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA in kohya's layout, and the weights that the model has with it, by part and name."""
    torch.manual_seed(0)
    tensors, weights = {}, {}
    for part, module in model.trainable.items():
        for number, (name, layer) in enumerate(layers(module).items()):
            r, key = rank(number), PREFIXES[part] + name.replace(".", "_")
            down = torch.randn(r, *layer.weight.shape[1:]) / r
            up = torch.randn(len(layer.weight), r, *[1] * (layer.weight.ndim - 2)) * 0.1
            tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            stated = alpha(number)
            if stated is not None:
                tensors[f"{key}.alpha"] = torch.tensor(float(stated))
            scale = 1.0 if stated is None else stated / r
            update = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape)
            weights[f"{part}.{name}.weight"] = layer.weight + scale * update
    return tensors, weights


def assert_read(tiny_sd: Path, file: Path, weights: dict[str, Tensor]) -> StableDiffusion:
    model = StableDiffusion.load(ModelFiles(str(tiny_sd)))
    read_lora(model.trainable, file)
    read = {
        f"{part}.{name}": weight for part, module in model.trainable.items() for name, weight in fused(module).items()
    }
    for name, weight in weights.items():
        torch.testing.assert_close(read[name], weight, atol=1e-5, rtol=0)
    return model


@pytest.mark.parametrize(("rank", "alpha"), [
    (lambda n: 4, lambda n: 4), (lambda n: 4, lambda n: 1), (lambda n: 4, lambda n: 1 + n % 3),
    (lambda n: 2 + n % 3, lambda n: None), (lambda n: 2 + n % 3, lambda n: 1 + n % 5),
    (lambda n: 4, lambda n: None if n % 2 else 1.0),
], ids=["rank", "one alpha", "alphas", "ranks", "ranks and alphas", "some alphas"])  # fmt: skip
def test_ranks_and_alphas_of_each_layer_count(
    model: StableDiffusion, tiny_sd: Path, tmp_path: Path,
    rank: Callable[[int], int], alpha: Callable[[int], float | None],
) -> None:  # fmt: skip
    tensors, weights = made_by_kohya(model, rank, alpha)
    save_file(tensors, tmp_path / "foreign.safetensors")
    read = assert_read(tiny_sd, tmp_path / "foreign.safetensors", weights)
    save_lora(read.trainable, tmp_path / "ours.safetensors", torch.float32, {})
    assert_read(tiny_sd, tmp_path / "ours.safetensors", weights)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, low_cpu_mem_usage=False)
    pipeline.load_lora_weights(str(tmp_path / "ours.safetensors"), adapter_name="default")
    theirs = fused(pipeline.unet)
    for name in layers(model.unet):
        torch.testing.assert_close(theirs[f"{name}.weight"], weights[f"unet.{name}.weight"], atol=1e-5, rtol=0)


def test_other_names_and_number_formats_give_the_same_weights(
    model: StableDiffusion, tiny_sd: Path, tmp_path: Path
) -> None:
    tensors, weights = made_by_kohya(model, lambda n: 4, lambda n: 2)
    file = tmp_path / "x.safetensors"
    save_file({name.replace("lora_te_", "lora_te1_"): value for name, value in tensors.items()}, file)
    assert_read(tiny_sd, file, weights)
    save_file(tensors | {"bundle_emb.sks.string_to_param.*": torch.zeros(2, 3)}, file)  # an embedding in the same file
    assert_read(tiny_sd, file, weights)
    save_file({name: value.double() for name, value in tensors.items()}, file)
    read = assert_read(tiny_sd, file, weights)
    assert all(value.dtype == torch.float32 for value in read.parameters())


@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_in_the_metadata_of_diffusers_counts(
    model: StableDiffusion, tiny_sd: Path, tmp_path: Path, rslora: bool
) -> None:
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=TARGETS["attention"], init_lora_weights=False, use_rslora=rslora,
        rank_pattern={"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 2}, alpha_pattern={"to_k": 5},
    )  # fmt: skip
    other = StableDiffusion.load(ModelFiles(str(tiny_sd)))
    inject_adapter_in_model(config, other.unet, "default")
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(other.unet, adapter_name="default"), weight_name="x.safetensors",
        unet_lora_adapter_metadata=config.to_dict(),
    )  # fmt: skip
    read_lora(model.trainable, tmp_path / "x.safetensors")
    expected = fused(other.unet)
    for name, weight in fused(model.unet).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("tensors", "line"), [
    ({"lora_unet_x.hada_w1_a": 1}, "is a LoHa"),
    ({"lora_unet_x.lokr_w1": 1}, "is a LoKr"),
    ({"lora_unet_x.lora_down.weight": 1, "lora_unet_x.dora_scale": 1}, "is a DoRA in kohya's layout"),
    ({"lora_te2_text_model_x.lora_down.weight": 1}, "is a LoRA of Stable Diffusion XL"),
    ({"unet.x.lora_A.weight": 1, "unet.x.lora_B.weight": 1, "unet.x.lora_B.bias": 1}, "is a LoRA with biases"),
    ({"base_model.model.x.lora_A.weight": 1}, "is in an unknown layout (base_model.model.x.lora_A.weight)"),
    ({"lora_unet_x.lora_down.weight": 1, "unet.x.lora_A.weight": 1}, "mixes the layouts"),
    ({"lora_unet_x.lora_down.weight": 1}, "lacks lora_unet_x.lora_up.weight"),
    ({"conv_in.weight": 1}, "holds no LoRA"),
])  # fmt: skip
def test_what_is_not_read_is_named(tmp_path: Path, tensors: dict[str, int], line: str) -> None:
    save_file({name: torch.zeros(size) for name, size in tensors.items()}, tmp_path / "x.safetensors")
    with pytest.raises(InputError) as refused:
        read_tensors(tmp_path / "x.safetensors")
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
