"""Trains the autoencoder, in stages: what was saved is gone on from.

python vae.py --data <pictures> --out <folder> --minutes 60           (again, to go on)
python vae.py --data <pictures> --out <folder> --minutes 60 --decay   (the last stage: the learning rate ends at 0)
python vae.py --data <pictures> --out <folder> --init <vae folder>    (from finished weights instead of toonbase's)
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from autoencoder import OLD_LATENTS, build, old_latents, old_stem, start_from, stem
from diffusers import AutoencoderKL
from pictures import Pictures, psnr, read_files, to_pixels
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

RECIPE = Path(__file__).resolve().parent
OLD = RECIPE.parents[1] / "toonbase/vae"
SKS = RECIPE.parents[1] / "images/sks_girl"
NEW_RATE, COPIED_RATE, WARM_UP = 1e-3, 4e-4, 400
STEM_STEPS, STEM_RATE = 300, 2e-3
KL_WEIGHT = 2e-4  # per latent number; with ten times as much the new channels stay empty
KEEP_WEIGHT = 0.3  # how firmly the first channels stay the old latents
EMA_DECAY = 0.995
CHECKED = 64  # held-out pictures
LOG_SECONDS, SAVE_SECONDS = 300, 300
FAST = torch.cpu._is_avx512_bf16_supported()  # elsewhere bfloat16 is emulated, and ten times slower


def lines(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbours, across and down."""
    return pixels[..., :, 1:] - pixels[..., :, :-1], pixels[..., 1:, :] - pixels[..., :-1, :]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of pixels, L1 of their differences (eyes and mouths are lines), squares (large errors cost PSNR)."""
    edges = sum((a - b).abs().mean() for a, b in zip(lines(output), lines(target), strict=True))
    return l1_loss(output, target) + 0.5 * edges + 2 * mse_loss(output, target)


def detail(pixels: Tensor) -> Tensor:
    """How much there is to learn in each image: its mean difference between neighbours."""
    across, down = lines(pixels)
    return across.abs().flatten(1).mean(1) + down.abs().flatten(1).mean(1)


def crop(images: Tensor, size_px: int) -> Tensor:
    """uint8 => pixels [B,3,size,size]: of three places in each image the one with most detail, in half mirrored."""
    limit = (images.shape[-1] - size_px) // 8 + 1
    found = []
    for image in images:
        tries = 3 if limit > 1 else 1
        corners = 8 * torch.randint(limit, (tries, 2))
        views = torch.stack([image[:, y : y + size_px, x : x + size_px] for y, x in corners.tolist()])
        view = views[detail(views.float()).argmax()]
        found.append(view.flip(-1) if torch.rand(()) < 0.5 else view)
    return to_pixels(torch.stack(found))


def step(vae: AutoencoderKL, old: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Batch => loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=FAST):
        posterior = vae.encode(pixels).latent_dist
        output = vae.decode(posterior.sample()).sample
        kept = old_latents(old, pixels)
    divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
    drift = mse_loss(posterior.mean[:, :OLD_LATENTS].float(), kept.float())
    return reconstruction_loss(output.float(), pixels) + KL_WEIGHT * divergence + KEEP_WEIGHT * drift


def fit_stem(vae: AutoencoderKL, old: AutoencoderKL, pictures: Pictures, batch: int, size_px: int) -> None:
    """Teaches the new first level to hand over what the old weights below expect."""
    first, second = vae.encoder.down_blocks[:2]
    weights = [*vae.encoder.conv_in.parameters(), *first.parameters(), *second.resnets.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=STEM_RATE)
    for number in range(STEM_STEPS):
        optimizer.param_groups[0]["lr"] = STEM_RATE * (1 - number / STEM_STEPS)
        pixels = crop(pictures.draw(batch), size_px)
        target = old_stem(old, pixels)
        loss = mse_loss(stem(vae, pixels), target) / target.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number % 50 == 49:
            print(f"stem {number + 1}: {loss:.4f} of the variance is missing", flush=True)


@torch.inference_mode()
def update_average(average: AutoencoderKL, vae: AutoencoderKL, steps: int) -> None:
    """EMA of the weights; short-sighted at first, so that the start is forgotten."""
    decay = min(EMA_DECAY, steps / (steps + 10))
    for slow, fast in zip(average.parameters(), vae.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """uint8 => the decoded posterior means, in [-1, 1]."""
    return torch.cat([vae.decode(vae.encode(to_pixels(few)).latent_dist.mode()).sample for few in images.split(16)])


class Training:
    """Everything that a stage hands to the next: weights, their average, the optimizer's state, the count of steps."""

    def __init__(self, out: Path, old: AutoencoderKL, init: Path | None) -> None:
        self.out, self.steps = out, 0
        self.vae = build()
        copied = start_from(old, self.vae)
        known = {id(weight) for weight in copied}
        new = [weight for weight in self.vae.parameters() if id(weight) not in known]
        if init:
            self.vae.load_state_dict(AutoencoderKL.from_pretrained(init, torch_dtype=torch.float32).state_dict())
        self.vae = self.vae.train().to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.vae).requires_grad_(False)
        groups = [{"params": new, "base": NEW_RATE}, {"params": copied, "base": COPIED_RATE}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
        if (out / "state.pt").is_file():
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self.out / "state.pt", weights_only=True)
        self.steps = state["steps"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.vae.load_state_dict(load_file(self.out / "training.safetensors"))
        self.average.load_state_dict(load_file(self.out / "average.safetensors"))

    def save(self) -> None:
        """Each file replaces its elder at once."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name, module in (("training", self.vae), ("average", self.average)):
            weights = {key: value.contiguous() for key, value in module.state_dict().items()}
            save_file(weights, self.out / f"{name}.part")
            (self.out / f"{name}.part").replace(self.out / f"{name}.safetensors")
        torch.save({"steps": self.steps, "optimizer": self.optimizer.state_dict()}, self.out / "state.part")
        (self.out / "state.part").replace(self.out / "state.pt")

    def advance(self, old: AutoencoderKL, pixels: Tensor, rate: float) -> float:
        """One step; `rate` in [0, 1] multiplies the learning rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate * min(1.0, (self.steps + 1) / WARM_UP)
        loss = step(self.vae, old, pixels)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        update_average(self.average, self.vae, self.steps)
        return loss.item()


def train(state: Training, old: AutoencoderKL, args: argparse.Namespace) -> None:
    """Goes on for `minutes`; logs what the averaged weights do on held-out pictures and on the held-back style."""
    held_out = Pictures(args.data, "heldout").read(torch.arange(CHECKED))
    checks = {"held out": held_out, "sks_girl": read_files(SKS)}
    pictures = Pictures(args.data, "captioned", "drawings")
    print(f"{len(pictures)} pictures, step {state.steps}", flush=True)
    if state.steps == 0 and not args.init:
        fit_stem(state.vae, old, pictures, args.batch, args.crop)
        state.average.load_state_dict(state.vae.state_dict())
    begun, seconds, first = time.monotonic(), 60 * args.minutes, state.steps
    logged = saved = 0.0
    while (elapsed := time.monotonic() - begun) < seconds:
        rate = 0.5 * (1 + math.cos(math.pi * elapsed / seconds)) if args.decay else 1.0
        loss = state.advance(old, crop(pictures.draw(args.batch), args.crop), rate)
        if elapsed - saved > SAVE_SECONDS:
            saved = elapsed
            state.save()
        if elapsed - logged > LOG_SECONDS:
            logged = elapsed
            report(state, checks, loss, (state.steps - first) * args.batch / elapsed)
    state.save()
    report(state, checks, loss, (state.steps - first) * args.batch / seconds)


def report(state: Training, checks: dict[str, Tensor], loss: float, speed: float) -> None:
    """A line of the log."""
    quality = {name: psnr(reconstruct(state.average, few), to_pixels(few)).mean() for name, few in checks.items()}
    words = "  ".join(f"{name} {value:.2f} dB" for name, value in quality.items())
    print(f"{time.strftime('%H:%M')}  step {state.steps}  {speed:.1f}/s  loss {loss:.4f}  {words}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64, help="px; 128 for the last stages")
    parser.add_argument("--decay", action="store_true")
    args = parser.parse_args()
    old = AutoencoderKL.from_pretrained(OLD, use_safetensors=True).to(memory_format=torch.channels_last)
    old = old.eval().requires_grad_(False)
    state = Training(args.out, old, args.init)
    torch.manual_seed(state.steps)
    train(state, old, args)


if __name__ == "__main__":
    main()
