"""How well the autoencoder keeps pictures, and how fast it is.

python measure_vae.py --vae <vae folder> --data <pictures> --grid grid.png
"""

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from pictures import Pictures, psnr, read_files, to_pixels
from torch import Tensor
from torchvision.transforms.functional import resize, to_pil_image
from torchvision.utils import make_grid
from vae import SKS, reconstruct

HELD_OUT, SHOWN, ENLARGED = 256, 8, 2


def timed_decode(vae: AutoencoderKL, count: int = 16) -> float:
    """Seconds to decode so many images."""
    latents = torch.randn(count, vae.config.latent_channels, 16, 16)
    with torch.inference_mode():
        vae.decode(latents)
        begun = time.monotonic()
        vae.decode(latents)
    return time.monotonic() - begun


def show(pairs: list[tuple[Tensor, Tensor]], path: Path) -> None:
    """Rows of originals and under each its reconstruction, enlarged."""
    rows = torch.cat([torch.cat([original[:SHOWN], decoded[:SHOWN].clamp(-1, 1)]) for original, decoded in pairs])
    grid = make_grid((rows + 1) / 2, nrow=SHOWN, padding=2)
    to_pil_image(resize(grid, [ENLARGED * side for side in grid.shape[1:]], antialias=False)).save(path)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    for name in ("vae", "data", "grid"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(args.vae, use_safetensors=True, torch_dtype=torch.float32)
    vae = vae.eval().to(memory_format=torch.channels_last)
    heldout = Pictures(args.data, "heldout")
    sets = {
        "held-out renderings": heldout.read(torch.arange(min(HELD_OUT, len(heldout)))),
        "sks_girl": torch.cat([read_files(SKS), read_files(SKS.with_name("sks_girl_held_out"))]),
        "sks_style": read_files(SKS.with_name("sks_style")),
    }
    pairs = []
    for name, images in sets.items():
        decoded, pixels = reconstruct(vae, images), to_pixels(images)
        quality = psnr(decoded, pixels)
        print(f"{name}: {quality.mean():.2f} dB on {len(images)}, the worst {quality.min():.2f}")
        pairs.append((pixels, decoded))
    print(f"16 images are decoded in {timed_decode(vae):.2f} s")
    show(pairs, args.grid)


if __name__ == "__main__":
    main()
