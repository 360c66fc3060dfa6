"""A real Stable Diffusion of about a million random parameters, in diffusers' folder layout."""

import json
from pathlib import Path

import open_clip
import timm
import torch
import torchvision
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import save_for_hf
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 64
WORDS = ["a", "photo", "of", "sks", "girl", "boy", "in", "the", "style", "with", "pink", "hair", ",", "ugly"]


def tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with letters and a few whole words."""
    letters = [chr(code) for code in range(33, 127)]
    merges: list[str] = []
    pieces = dict.fromkeys([*letters, *(letter + "</w>" for letter in letters)])
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges += [] if f"{parts[0]} {parts[1]}" in merges else [f"{parts[0]} {parts[1]}"]
            parts = [parts[0] + parts[1], *parts[2:]]
            pieces[parts[0]] = None
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=TOKENS,
        unk_token="<|endoftext|>",
    )  # fmt: skip


def stable_diffusion(folder: Path, prediction_type: str = "epsilon", factor: int = 4, seed: int = 0) -> Path:
    """Builds and saves the model; equal arguments give equal weights."""
    torch.manual_seed(seed)
    words = tokenizer(folder / "words")
    channels = (16, 32, 32, 32)[: factor.bit_length()]
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=channels, layers_per_block=1, norm_num_groups=8, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            scaling_factor=0.5, sample_size=32,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=TOKENS, projection_dim=32, dtype="float32",
                bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
            )
        ),
        tokenizer=words,
        unet=UNet2DConditionModel(
            sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=4,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def images(folder: Path, count: int, size_px: int = 40) -> Path:
    """Plain coloured images with a stripe, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = Image.new("RGB", (size_px + i, size_px), (20 + 30 * i % 230, 60, 200 - 20 * i % 190))
        image.paste((250, 240, 10 * i % 250), (3 * i % size_px, 0, 3 * i % size_px + 6, size_px))
        image.save(folder / f"{i:02d}.png")
    return folder


def subject(folder: Path, count: int, size_px: int = 40) -> Path:
    """Images that are more like each other than like what a random model draws."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = Image.new("RGB", (size_px, size_px), (250 - i, 5 * i, 0))
        left, top = (7 * i) % (size_px // 2), (11 * i) % (size_px // 2)
        image.paste((0, 20, 250), (left, top, left + size_px // 2, top + size_px // 2))
        image.save(folder / f"{i:02d}.png")
    return folder


def clip(folder: Path, seed: int = 0) -> Path:
    """A small open_clip folder, with the tokenizer of `stable_diffusion`."""
    torch.manual_seed(seed)
    words = tokenizer(folder)
    words.save_pretrained(folder)
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {
            "context_length": 48, "vocab_size": len(words), "width": 32, "heads": 2, "layers": 2,
            "hf_tokenizer_name": "here", "eos_id": words.eos_token_id, "pad_id": words.pad_token_id, "pool_type": "eos",
        },
    }  # fmt: skip
    weights = open_clip.CLIP(**config).state_dict()
    weights["visual.conv1.weight"] *= 30  # else the biases of a random encoder hide the image
    content = {"model_cfg": config, "preprocess_cfg": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    return folder


def dino(folder: Path, seed: int = 1) -> Path:
    """A small vision transformer in timm's folder layout."""
    torch.manual_seed(seed)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_small_patch16_224", num_classes=0, **sizes)
    seen = {"input_size": (3, 32, 32), "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "tag": "dino"}
    model.pretrained_cfg = model.pretrained_cfg | seen
    folder.mkdir(parents=True)
    save_for_hf(model, folder, model_args=sizes, safe_serialization=True)
    return folder


def alexnet(file: Path) -> Path:
    """AlexNet with random weights, as torchvision names them."""
    torch.manual_seed(2)
    save_file(torchvision.models.alexnet(weights=None).state_dict(), file)
    return file
