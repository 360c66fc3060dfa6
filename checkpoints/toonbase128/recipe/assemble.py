"""Puts the new autoencoder together with toonbase's tokenizer, text encoder and UNet: a Stable Diffusion folder.

python assemble.py --vae <vae folder> --out <folder> [--prediction v_prediction]

The UNet's first and last convolution get twelve channels more, which it neither reads nor writes at first.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file

OLD = Path(__file__).resolve().parents[2] / "toonbase"


@torch.no_grad()
def widen_unet(old: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
    """The same network for more latent channels."""
    new = UNet2DConditionModel.from_config({**old.config, "in_channels": channels, "out_channels": channels})
    weights = old.state_dict()
    for name in ("conv_in.weight", "conv_out.weight", "conv_out.bias"):
        wide = torch.zeros_like(new.state_dict()[name])
        narrow = weights[name]
        wide[tuple(slice(size) for size in narrow.shape)] = narrow
        weights[name] = wide
    new.load_state_dict(weights)
    return new


def write_scheduler(out: Path, prediction: str) -> None:
    """Writes toonbase's noise schedule, with what the UNet is to predict."""
    config = json.loads((OLD / "scheduler/scheduler_config.json").read_text())
    out.mkdir(parents=True)
    (out / "scheduler_config.json").write_text(json.dumps(config | {"prediction_type": prediction}, indent=2) + "\n")


def rewrite_config(path: Path) -> None:
    """Forgets where the model lay."""
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
    path.write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prediction", choices=("epsilon", "v_prediction"), default="v_prediction")
    args = parser.parse_args()
    vae = AutoencoderKL.from_pretrained(args.vae, use_safetensors=True)
    old = UNet2DConditionModel.from_pretrained(OLD, subfolder="unet", use_safetensors=True)
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(OLD / part, args.out / part)
    shutil.copyfile(OLD / "model_index.json", args.out / "model_index.json")
    widen_unet(old, vae.config.latent_channels).save_pretrained(args.out / "unet")
    vae.save_pretrained(args.out / "vae")
    write_scheduler(args.out / "scheduler", args.prediction)
    for part in ("unet", "vae"):
        rewrite_config(args.out / part / "config.json")
        size = sum(value.numel() for value in load_file(next((args.out / part).glob("*.safetensors"))).values())
        print(f"{part}: {size:,} numbers")


if __name__ == "__main__":
    main()
