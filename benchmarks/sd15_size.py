"""A random model of Stable Diffusion 1.5's size, and images for it."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

BUNDLED = Path(__file__).parent.parent / "checkpoints/toonbase"
TEXT = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "vocab_size": 49408, "bos_token_id": 982, "eos_token_id": 983,
}  # fmt: skip
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def model(folder: Path) -> Path:
    """Writes the model, with the tokenizer and noise schedule of the bundled one: 4.3 GB."""
    torch.manual_seed(0)
    for part, network in {
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        "vae": AutoencoderKL(**VAE, scaling_factor=0.18215),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
    }.items():
        network.save_pretrained(folder / part)
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(BUNDLED / part, folder / part)
    config = folder / "tokenizer/tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": 77}))
    return folder


def images(folder: Path) -> Path:
    """Writes four images of random colours."""
    folder.mkdir()
    for number in range(4):
        pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.numpy()).resize((600, 600), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder
