"""Puts tokenizer and autoencoder together with an untrained text encoder and UNet: a Stable Diffusion folder.

python assemble.py --tokenizer <folder> --vae <folder> --out <folder>
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 192  # of the text encoder, hence of cross-attention
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's architecture, untrained, for this vocabulary."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_unet() -> UNet2DConditionModel:
    """Three levels, cross-attention on the upper two; untrained."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 256),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=(2, 4, 8),  # in diffusers this is the number of heads
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """As in Stable Diffusion 1.5."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def assemble(tokenizer_folder: Path, vae_folder: Path) -> StableDiffusionPipeline:
    """Folders of the finished parts => a whole pipeline."""
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae_folder, use_safetensors=True),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=build_unet(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(pipeline: StableDiffusionPipeline, tokenizer_folder: Path, out: Path) -> None:
    """Writes the folder; older readers want vocab.json and merges.txt, which save_pretrained leaves out."""
    pipeline.save_pretrained(out, safe_serialization=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, out / "tokenizer" / name)
    for path in out.rglob("*.json"):
        if path.name in ("config.json", "model_index.json"):
            rewrite_config(path)


def rewrite_config(path: Path) -> None:
    """Forgets where the model lay; states the dtype, as transformers obeys it and diffusers loads single precision."""
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
    config |= {"dtype": "float32"} if path.parent.name == "text_encoder" else {}
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    for name in ("tokenizer", "vae", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    save(assemble(args.tokenizer, args.vae), args.tokenizer, args.out)
    for part in ("text_encoder", "unet", "vae"):
        megabytes = sum(file.stat().st_size for file in (args.out / part).glob("*.safetensors")) / 1e6
        print(f"{part}: {megabytes:.1f} MB")


if __name__ == "__main__":
    main()
