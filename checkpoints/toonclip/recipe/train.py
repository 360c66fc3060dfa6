"""Trains toonclip: captions against pictures, and views of a character against each other.

python train.py --pictures <file of gather.py> --minutes 60
"""

import argparse
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import open_clip
import torch
from gather import MODEL
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import affine_grid, conv2d, cross_entropy, grid_sample, normalize, pad
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

CAPTIONED, CHARACTERS = 128, 64  # pictures with captions, and pairs of views, of one batch
WORKERS = 2  # batches of one step, each on a core of its own: run with OMP_NUM_THREADS=1
LEARNING_RATE, WEIGHT_DECAY, WARM_UP_SECONDS = 2e-3, 0.05, 60
IDENTITY_WEIGHT, IDENTITY_TEMPERATURE = 1.0, 0.07
MAX_LOGIT_SCALE = math.log(100)
EMA_DECAY = 0.995
SETTLING_BATCHES = 40
LOG_SECONDS, SAVE_SECONDS = 60, 600


def uniform(low: float, high: float, *shape: int) -> Tensor:
    """Uniform random numbers."""
    return torch.empty(shape).uniform_(low, high)


def blur(images: Tensor) -> Tensor:
    """Gaussian of one random width in pixels."""
    weights = torch.exp(-torch.arange(-3.0, 4).square() / (2 * float(uniform(0.3, 1.3)) ** 2))
    kernel = (weights / weights.sum()).expand(3, 1, 1, 7)
    return conv2d(conv2d(pad(images, (3, 3, 3, 3), mode="replicate"), kernel, groups=3), kernel.mT, groups=3)


def augment(images: Tensor) -> Tensor:
    """uint8 => [-1, 1]; each flipped, turned, scaled and moved, half of them blurred, a little colour and noise."""
    count = len(images)
    angle, scale = uniform(-0.2, 0.2, count), uniform(0.85, 1.2, count)
    flip = torch.randint(0, 2, (count,)) * 2 - 1
    row_x = torch.stack([flip * scale * angle.cos(), -scale * angle.sin(), uniform(-0.12, 0.12, count)], 1)
    row_y = torch.stack([flip * scale * angle.sin(), scale * angle.cos(), uniform(-0.12, 0.12, count)], 1)
    grid = affine_grid(torch.stack([row_x, row_y], 1), list(images.shape), align_corners=False)
    moved = grid_sample(images.float() / 127.5 - 1, grid, padding_mode="border", align_corners=False)
    soft = torch.rand(count) < 0.5
    moved[soft] = blur(moved[soft])
    gain, offset = 1 + 0.06 * torch.randn(count, 3, 1, 1), 0.04 * torch.randn(count, 3, 1, 1)
    return (moved * gain + offset + uniform(0, 0.08, count, 1, 1, 1) * torch.randn_like(moved)).clamp(-1, 1)


def caption_loss(image: Tensor, text: Tensor, true: Tensor, scale: Tensor) -> Tensor:
    """Contrastive loss in which a caption's positives are all pictures of which it is true (UniCL, arXiv:2204.03610).

    Args:
        image: Unit embeddings of pictures [B,D].
        text: Unit embeddings of their captions [B,D].
        true: Whether caption j is true of picture i [B,B].
        scale: Inverse temperature.
    """
    logits = scale * image @ text.T
    return sum(
        cross_entropy(scores, target / target.sum(1, keepdim=True)) / 2
        for scores, target in ((logits, true.float()), (logits.T, true.T.float()))
    )


def identity_loss(view: Tensor, other: Tensor) -> Tensor:
    """InfoNCE between two views of each character, unit embeddings [C,D] (SimCLR, arXiv:2002.05709; SLIP)."""
    logits = view @ other.T / IDENTITY_TEMPERATURE
    target = torch.arange(len(view))
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def draw_captioned(data: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Random pictures, their captions, and which caption is true of which picture."""
    chosen = torch.randint(len(data["images"]), (CAPTIONED,))
    labels, said = data["labels"][chosen], data["said"][chosen]
    true = ((labels[:, None] == labels[None]) | ~said[None]).all(-1)
    return data["images"][chosen], data["tokens"][chosen], true


def draw_views(data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Two different views of random characters; twins, which differ in one trait, come together."""
    families = torch.randint(len(data["views"]) // 2, (CHARACTERS // 2,))
    chosen = torch.stack([2 * families, 2 * families + 1], 1).flatten()
    first, second = torch.rand(CHARACTERS, data["views"].shape[1]).argsort(1)[:, :2].unbind(1)
    return data["views"][chosen, first], data["views"][chosen, second]


def draw_pixels(data: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """One batch: captioned pictures and two views of characters together, augmented; captions; which are true."""
    images, tokens, true = draw_captioned(data)
    pixels = torch.cat([augment(part) for part in (images, *draw_views(data))])
    return pixels.to(memory_format=torch.channels_last), tokens, true


def losses(model: nn.Module, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One batch of each kind => what captions and identity cost."""
    pixels, tokens, true = draw_pixels(data)
    with torch.autocast("cpu", torch.bfloat16):
        image = model.encode_image(pixels)
        text = model.encode_text(tokens)
    captioned, view, other = normalize(image.float(), dim=1).split([CAPTIONED, CHARACTERS, CHARACTERS])
    scale = model.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
    return caption_loss(captioned, normalize(text.float(), dim=1), true, scale), identity_loss(view, other)


def gradients(model: nn.Module, data: dict[str, Tensor]) -> tuple[list[float], tuple[Tensor, ...]]:
    """One batch of each kind => its two losses, and the gradient of each weight."""
    captions, identity = losses(model, data)
    total = captions + IDENTITY_WEIGHT * identity
    return [captions.item(), identity.item()], torch.autograd.grad(total, list(model.parameters()))


def learning_rate(seconds: float, total_seconds: float) -> float:
    """Warm-up, then a cosine to zero, both in wall-clock time: the run ends when it was promised to end."""
    warm_up = min(1.0, seconds / WARM_UP_SECONDS)
    return LEARNING_RATE * warm_up * 0.5 * (1 + math.cos(math.pi * min(1.0, seconds / total_seconds)))


def save(model: nn.Module, data: dict[str, Tensor], path: Path) -> None:
    """Writes averaged weights: batch norms measured anew for them, half precision but for the batch counters."""
    update_bn((draw_pixels(data)[0] for _ in range(SETTLING_BATCHES)), model.visual)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}, path)


def train(model: nn.Module, data: dict[str, Tensor], out: Path, seconds: float) -> None:
    """Trains for `seconds` and saves the averaged weights."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = create_optimizer_v2(model, "adamw", lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    pool = ThreadPoolExecutor(WORKERS)
    start = time.monotonic()
    logged, saved, steps = 0.0, 0.0, 0
    while (elapsed := time.monotonic() - start) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(elapsed, seconds)
        batches = [pool.submit(gradients, model, data) for _ in range(WORKERS)]
        values, grads = zip(*(batch.result() for batch in batches), strict=True)
        for weight, *parts in zip(model.parameters(), *grads, strict=True):
            weight.grad = torch.stack(parts).mean(0)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        steps += 1
        if elapsed - logged > LOG_SECONDS:
            logged = elapsed
            captions, identity = torch.tensor(values).mean(0).tolist()
            print(f"{elapsed:5.0f} s  {steps} steps  captions {captions:.3f}  identity {identity:.3f}", flush=True)
        if elapsed - saved > SAVE_SECONDS:
            saved = elapsed
            save(average.module, data, out)
    save(average.module, data, out)
    print(f"{steps} steps in {seconds / 60:.0f} minutes")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "open_clip_model.safetensors")
    args = parser.parse_args()
    torch.manual_seed(0)
    data = load_file(args.pictures)
    model = open_clip.create_model(MODEL, load_weights=False).train().to(memory_format=torch.channels_last)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters")
    # faster than flash attention on a CPU where there are few tokens
    with sdpa_kernel(SDPBackend.MATH):
        train(model, data, args.out, args.minutes * 60)


if __name__ == "__main__":
    main()
