"""Names of weights in the original layout, that of single files: https://github.com/CompVis/stable-diffusion.

They are computed from the configs, for any number of levels and layers. The way back that they are tested against is
diffusers' `from_single_file`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lightning_dreambooth.errors import InputError

PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model."}
BLOCKS = {
    "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UNetMidBlock2DCrossAttn",
    "DownEncoderBlock2D", "UpDecoderBlock2D",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)")
VAE_LAYERS = {
    "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out", "mid_block.attentions.0.": "mid.attn_1.",
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "mid_block.resnets.0.": "mid.block_1.", "mid_block.resnets.1.": "mid.block_2.",
    "resnets.": "block.", "downsamplers.0.": "downsample.", "upsamplers.0.": "upsample.",
}  # fmt: skip
OPENCLIP = {
    "embeddings.token_embedding.": "token_embedding.", "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers.": "transformer.resblocks.", "final_layer_norm.": "ln_final.", "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.", "mlp.fc1.": "mlp.c_fc.", "mlp.fc2.": "mlp.c_proj.", "self_attn.": "attn.",
}  # fmt: skip


class Place(NamedTuple):
    """Where a weight lies in a single file.

    Attributes:
        name: Name of the tensor that holds it.
        third: Which third of that tensor's rows it is, in 0 ... 2; None if it is the whole.
    """

    name: str
    third: int | None = None


def places(part: str, names: Iterable[str], config: Mapping[str, Any]) -> dict[str, Place]:
    """Names of a part's weights in its own state => where these lie in a single file.

    Args:
        part: `unet`, `vae` or `text_encoder`.
        names: Names of its weights.
        config: Its config, with all entries that this part has.
    """
    find = {"unet": _unet_place, "vae": _vae_place, "text_encoder": _text_place}[part]
    found = {name: find(name, config) for name in names}
    return {name: Place(PREFIXES[part] + place.name, place.third) for name, place in found.items()}


def check_layout(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raises InputError if a model has blocks that the original layout has no names for."""
    kinds = [*unet["down_block_types"], unet["mid_block_type"], *unet["up_block_types"]]
    kinds += [*vae["down_block_types"], *vae["up_block_types"]]
    other = sorted({str(kind) for kind in kinds} - BLOCKS)
    if other:
        raise InputError(f"a single file has no names for blocks of the kind {other[0]}; use the diffusers folder")
    layers = unet["layers_per_block"]
    if not isinstance(layers, int):
        raise InputError(f"a single file has equal blocks, layers_per_block is {layers}; use the diffusers folder")


def _unet_place(name: str, config: Mapping[str, Any]) -> Place:
    layer, _, leaf = name.rpartition(".")
    if layer in UNET_ENDS:
        return Place(f"{UNET_ENDS[layer]}.{leaf}")
    match = UNET_BLOCK.fullmatch(name)
    assert match, name
    side, kind, rest = match[1], match[3], match[5]
    level, number = int(match[2] or 0), int(match[4])
    if kind == "resnets":
        layer, _, leaf = rest.rpartition(".")
        rest = f"{UNET_RESNET[layer]}.{leaf}"
    column = 1 if kind == "attentions" else 0
    if side == "mid_block":
        return Place(f"middle_block.{1 if column else 2 * number}.{rest}")
    # Each level has its layers and then, on the way down, one more block that halves the size. On the way up it has one
    # more layer, and the doubling of the size belongs to its last block.
    layers = config["layers_per_block"]
    first = level * (layers + 1)
    if kind == "downsamplers":
        return Place(f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}")
    if kind == "upsamplers":
        attends = config["up_block_types"][level].startswith("CrossAttn")
        return Place(f"output_blocks.{first + layers}.{2 if attends else 1}.{rest}")
    block = f"input_blocks.{first + number + 1}" if side == "down_blocks" else f"output_blocks.{first + number}"
    return Place(f"{block}.{column}.{rest}")


def _vae_place(name: str, config: Mapping[str, Any]) -> Place:
    last = len(config["block_out_channels"]) - 1  # the original numbers levels by their size, in the decoder too
    name = re.sub(r"^encoder\.down_blocks\.(\d+)", r"encoder.down.\1", name)
    name = re.sub(r"^decoder\.up_blocks\.(\d+)", lambda match: f"decoder.up.{last - int(match[1])}", name)
    return Place(_replaced(name, VAE_LAYERS))


def _text_place(name: str, config: Mapping[str, Any]) -> Place:
    if not is_openclip(config):
        return Place(f"transformer.text_model.{name}")
    name = _replaced(name, OPENCLIP)
    joined = re.fullmatch(r"(.+\.attn)\.([qkv])_proj\.(weight|bias)", name)
    if joined:
        return Place(f"model.{joined[1]}.in_proj_{joined[3]}", "qkv".index(joined[2]))
    return Place(f"model.{name}")


def is_openclip(text: Mapping[str, Any]) -> bool:
    """Whether a text encoder is OpenCLIP's, as in Stable Diffusion 2.x: OpenAI's has another activation."""
    return text.get("hidden_act", "quick_gelu") == "gelu"


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for ours, original in table.items():
        name = name.replace(ours, original)
    return name
