"""Fixes what the latents mean, so that they are easy to learn: exact changes of the two 1x1 convolutions.

python settle.py --vae <training folder> --data <pictures> --out <vae folder>

The first four channels stay the old latents. From the other twelve, what the four tell linearly is subtracted; they are
turned until they are uncorrelated and scaled to the deviation of the four. Decoded images stay the same.
"""

import argparse
from pathlib import Path

import torch
from autoencoder import LATENTS, OLD_LATENTS, build
from diffusers import AutoencoderKL
from pictures import Pictures, psnr, to_pixels
from safetensors.torch import load_file
from torch import Tensor
from vae import reconstruct

MEASURED = 512  # pictures


@torch.inference_mode()
def latent_means(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 => posterior means, as rows of numbers [N,16], and the mean of the variances [16]."""
    posteriors = [vae.encode(to_pixels(few)).latent_dist for few in images.split(16)]
    means = torch.cat([posterior.mean for posterior in posteriors])
    variances = torch.cat([posterior.var for posterior in posteriors])
    return means.movedim(1, -1).flatten(0, -2).double(), variances.mean((0, 2, 3)).double()


def settling(means: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of latents => the matrix and offset of new = matrix @ old + offset."""
    centre = means.mean(0)
    covariance = torch.cov(means.T)
    base, rest = slice(0, OLD_LATENTS), slice(OLD_LATENTS, LATENTS)
    told = covariance[rest, base] @ torch.linalg.inv(covariance[base, base])
    left = covariance[rest, rest] - told @ covariance[base, rest]
    values, vectors = torch.linalg.eigh(left)
    deviation = covariance[base, base].diagonal().mean().sqrt()
    turn = deviation * (vectors / values.sqrt()).flip(1).T
    matrix = torch.eye(LATENTS, dtype=means.dtype)
    matrix[rest, base], matrix[rest, rest] = -turn @ told, turn
    offset = torch.zeros(LATENTS, dtype=means.dtype)
    offset[rest] = -(matrix @ centre)[rest]
    return matrix, offset


@torch.no_grad()
def settle(vae: AutoencoderKL, images: Tensor) -> None:
    """Changes the convolutions next to the latents, and writes the scaling factor into the config."""
    means, variances = latent_means(vae, images)
    matrix, offset = settling(means)
    weight, bias = vae.quant_conv.weight.double()[:, :, 0, 0], vae.quant_conv.bias.double()
    log_variances = ((matrix**2) @ variances).log()
    new_weight = torch.cat([matrix @ weight[:LATENTS], torch.zeros_like(weight[LATENTS:])])
    new_bias = torch.cat([matrix @ bias[:LATENTS] + offset, log_variances])
    back, after = torch.linalg.inv(matrix), vae.post_quant_conv.weight.double()[:, :, 0, 0]
    vae.post_quant_conv.bias.sub_((after @ back @ offset).float())
    vae.post_quant_conv.weight.copy_((after @ back).float()[:, :, None, None])
    vae.quant_conv.weight.copy_(new_weight.float()[:, :, None, None])
    vae.quant_conv.bias.copy_(new_bias.float())
    settled = latent_means(vae, images)[0]
    vae.register_to_config(scaling_factor=float(1 / settled[:, :OLD_LATENTS].std(0).mean()))


def describe(vae: AutoencoderKL, images: Tensor) -> None:
    """Prints what a UNet will have to learn."""
    means, variances = latent_means(vae, images)
    scaled = means * vae.config.scaling_factor
    correlations = torch.corrcoef(means.T) - torch.eye(LATENTS)
    print(f"scaling factor {vae.config.scaling_factor:.4f}, largest correlation {correlations.abs().max():.3f}")
    print("deviation of each channel:", [round(value, 2) for value in scaled.std(0).tolist()])
    posterior = variances.sqrt() * vae.config.scaling_factor
    print("posterior deviation:", [round(value, 3) for value in posterior.tolist()])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    for name in ("vae", "data", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    vae = build().to(memory_format=torch.channels_last).eval()
    vae.load_state_dict(load_file(args.vae / "average.safetensors"))
    pictures = Pictures(args.data, "captioned")
    images = pictures.read(torch.arange(0, len(pictures), max(1, len(pictures) // MEASURED))[:MEASURED])
    before = psnr(reconstruct(vae, images[:64]), to_pixels(images[:64])).mean()
    settle(vae, images)
    after = psnr(reconstruct(vae, images[:64]), to_pixels(images[:64])).mean()
    print(f"{before:.2f} dB before, {after:.2f} dB after")
    describe(vae, images)
    vae.half().save_pretrained(args.out)


if __name__ == "__main__":
    main()
