"""Configs and tokenizer of Stable Diffusion 1.x and 2.x, for single files that have none."""

import gzip
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

BYTE_PAIRS = "bpe_simple_vocab_16e6.txt.gz"  # CLIP's, in the package open_clip
VOCABULARY = 49408
BLOCK_OUT_CHANNELS = [320, 640, 1280, 1280]
LEVELS = len(BLOCK_OUT_CHANNELS)
VERSIONS = {768: "1.x", 1024: "2.x"}  # by the width of the text encoder
UNETS: dict[int, dict[str, Any]] = {
    768: {"attention_head_dim": 8},
    1024: {"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
}
TEXT_ENCODERS: dict[int, dict[str, Any]] = {
    768: {"hidden_act": "quick_gelu", "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768},
    # OpenCLIP's ViT-H has 24 layers; the model reads the output of the last but one.
    1024: {"hidden_act": "gelu", "num_attention_heads": 16, "num_hidden_layers": 23, "projection_dim": 512},
}
PADDING = {768: "<|endoftext|>", 1024: "!"}


def known_configs(width: int, prediction_type: str, in_channels: int) -> dict[str, dict[str, Any]]:
    """The configs of Stable Diffusion 1.5, 2.0 base or 2.1, by the names that their files have in a diffusers folder.

    Args:
        width: Width of the text encoder: 768 in Stable Diffusion 1.x, 1024 in 2.x.
        prediction_type: `epsilon` or `v_prediction`; a model of 2.x with the latter is one for 768 px.
        in_channels: Channels that the UNet reads: 4 in text-to-image models.
    """
    resolution_px = 768 if width == 1024 and prediction_type == "v_prediction" else 512
    return {
        "unet/config.json": _unet(width, resolution_px, in_channels),
        "vae/config.json": _vae(resolution_px),
        "text_encoder/config.json": _text_encoder(width),
        "scheduler/scheduler_config.json": _scheduler(prediction_type),
        "tokenizer/tokenizer_config.json": _tokenizer(width),
    }


def _unet(width: int, resolution_px: int, in_channels: int) -> dict[str, Any]:
    return UNETS[width] | {
        "_class_name": "UNet2DConditionModel",
        "sample_size": resolution_px // 2 ** (LEVELS - 1),
        "in_channels": in_channels,
        "out_channels": 4,
        "block_out_channels": BLOCK_OUT_CHANNELS,
        "down_block_types": ["CrossAttnDownBlock2D"] * (LEVELS - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (LEVELS - 1),
        "layers_per_block": 2,
        "cross_attention_dim": width,
        "upcast_attention": resolution_px == 768,
    }


def _vae(resolution_px: int) -> dict[str, Any]:
    return {
        "_class_name": "AutoencoderKL",
        "sample_size": resolution_px,
        "latent_channels": 4,
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * LEVELS,
        "up_block_types": ["UpDecoderBlock2D"] * LEVELS,
        "layers_per_block": 2,
        "scaling_factor": 0.18215,
    }


def _text_encoder(width: int) -> dict[str, Any]:
    return TEXT_ENCODERS[width] | {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "dtype": "float32",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 77,
        "vocab_size": VOCABULARY,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def _scheduler(prediction_type: str) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def _tokenizer(width: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": PADDING[width],
    }


@cache
def clip_vocabulary() -> tuple[dict[str, int], list[str]]:
    """CLIP's tokens with their ids, 0 ... 49407, and its merges in their order.

    The file of byte pairs has a line of text and more merges than are used. The tokens are the bytes, the bytes at the
    end of a word, the merges and two special ones: https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py.
    """
    package = find_spec("open_clip")  # found, not imported: that takes seconds
    assert package is not None
    assert package.origin is not None
    lines = gzip.decompress(Path(package.origin).with_name(BYTE_PAIRS).read_bytes()).decode("utf-8").split("\n")
    letters = sorted(ByteLevel.alphabet())
    merges = lines[1 : 1 + VOCABULARY - 2 * len(letters) - 2]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def clip_tokenizer_files() -> dict[str, str]:
    """The files of CLIP's tokenizer, by the names that they have in a diffusers folder => their text."""
    vocabulary, merges = clip_vocabulary()
    return {
        "tokenizer/vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "tokenizer/merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
    }
