"""Models in the layouts of Stable Diffusion 1.5 and 2.1 with few channels, and what their true single files are."""

import json
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from helpers import tiny
from lightning_dreambooth.models.known_models import known_configs
from lightning_dreambooth.models.model_files import ModelFiles
from lightning_dreambooth.models.original_layout import places
from lightning_dreambooth.models.single_file import save_single_file
from lightning_dreambooth.models.stable_diffusion import StableDiffusion

TOONBASE = Path(__file__).parents[2] / "checkpoints/toonbase"
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
PARTS = ("unet", "vae", "text_encoder")
Shapes = dict[str, list[int]]


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
