"""Trains the autoencoder (64 px, factor 4, 4 latent channels) and writes it as a diffusers folder.

python vae.py --data <pictures> --out <folder> --minutes 60
python vae.py --data <pictures> --out <folder> --minutes 60 --init <folder> --decoder_only    (latents stay valid)
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from pictures import psnr, read_images, read_rows, to_pixels
from torch import Tensor

CHANNELS = (32, 64, 128)
BATCH = 16  # at a fixed time, many small steps beat few large ones
LEARNING_RATE = 8e-4
WARM_UP_SECONDS = 60
KL_WEIGHT = 2e-6
EMA_DECAY = 0.998
HELD_OUT = 256
LOG_SECONDS, SAVE_SECONDS = 150, 600


def build() -> AutoencoderKL:
    """An untrained autoencoder."""
    return AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def gradients(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbours, across and down."""
    return pixels[..., :, 1:] - pixels[..., :, :-1], pixels[..., 1:, :] - pixels[..., :-1, :]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of pixels, L1 of their gradients (edges carry eyes and mouths), squares (large errors cost PSNR)."""
    edges = sum((a - b).abs().mean() for a, b in zip(gradients(output), gradients(target), strict=True))
    return (output - target).abs().mean() + 0.5 * edges + 2 * (output - target).square().mean()


def learning_rate(seconds: float, total_seconds: float) -> float:
    """Warm-up, then a cosine to zero, both in wall-clock time: the run ends when it was promised to end."""
    warm_up = min(1.0, seconds / WARM_UP_SECONDS)
    return LEARNING_RATE * warm_up * 0.5 * (1 + math.cos(math.pi * min(1.0, seconds / total_seconds)))


def step(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Batch => loss."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
        output = vae.decode(posterior.sample()).sample
    return reconstruction_loss(output.float(), pixels) + KL_WEIGHT * posterior.kl().float().mean()


@torch.inference_mode()
def update_average(average: AutoencoderKL, vae: AutoencoderKL, steps: int) -> None:
    """EMA of the weights; short-sighted at first, so that the start is forgotten."""
    decay = min(EMA_DECAY, steps / (steps + 10))
    for slow, fast in zip(average.parameters(), vae.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """uint8 => the decoded posterior means, in [-1, 1]."""
    chunks = [to_pixels(chunk).to(memory_format=torch.channels_last) for chunk in images.split(64)]
    return torch.cat([vae.decode(vae.encode(chunk).latent_dist.mode()).sample for chunk in chunks])


@torch.inference_mode()
def latent_deviation(vae: AutoencoderKL, images: Tensor) -> float:
    """One standard deviation for all latents: its inverse is the scaling factor."""
    return torch.cat([vae.encode(to_pixels(chunk)).latent_dist.sample() for chunk in images.split(64)]).std().item()


def save(vae: AutoencoderKL, images: Tensor, out: Path) -> None:
    """Writes the folder, with the scaling factor measured on `images`."""
    vae.register_to_config(scaling_factor=1 / latent_deviation(vae, images))
    vae.save_pretrained(out)


def train(vae: AutoencoderKL, images: Tensor, held_out: Tensor, out: Path, seconds: float) -> None:
    """Trains for `seconds`, logs what the averaged weights do on held-out pictures, saves them."""
    average = copy.deepcopy(vae).requires_grad_(False)
    weights = [weight for weight in vae.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=1e-3, fused=True)
    start = time.monotonic()
    logged, saved, steps = 0.0, 0.0, 0
    while (elapsed := time.monotonic() - start) < seconds:
        optimizer.param_groups[0]["lr"] = learning_rate(elapsed, seconds)
        pixels = to_pixels(images[torch.randint(len(images), (BATCH,))])
        flipped = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, pixels.flip(-1), pixels)
        loss = step(vae, flipped.to(memory_format=torch.channels_last))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        steps += 1
        update_average(average, vae, steps)
        if elapsed - logged > LOG_SECONDS:
            logged = elapsed
            quality = psnr(reconstruct(average, held_out), to_pixels(held_out)).mean()
            print(
                f"{elapsed:5.0f} s  {steps} steps  {steps * BATCH / elapsed:.1f}/s  loss {loss:.4f}  {quality:.2f} dB",
                flush=True,
            )
        if elapsed - saved > SAVE_SECONDS:
            saved = elapsed
            save(average, images[:1024], out)
    save(average, images[:8192], out)
    quality = psnr(reconstruct(average, held_out), to_pixels(held_out)).mean()
    print(f"{steps} steps  {quality:.2f} dB  scaling factor {average.config.scaling_factor:.4f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--decoder_only", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    images, held_out = (
        read_images([args.data / row["file"] for row in read_rows(args.data, split)]) for split in ("train", "heldout")
    )
    vae = AutoencoderKL.from_pretrained(args.init, use_safetensors=True) if args.init else build()
    vae = vae.train().to(memory_format=torch.channels_last)
    if args.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    print(f"{sum(weight.numel() for weight in vae.parameters()):,} parameters, {len(images)} pictures", flush=True)
    train(vae, images, held_out[:HELD_OUT], args.out, args.minutes * 60)


if __name__ == "__main__":
    main()
