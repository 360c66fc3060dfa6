"""A small judge of pictures: medium (also the held-back style), gender, hair, expression, background and thing.

python classifier.py --data <pictures> --out classifier.safetensors [--vae <vae folder>]
"""

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from pictures import Pictures, to_pixels
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, normalize
from torchvision.transforms.functional import affine, gaussian_blur
from vae import reconstruct

EMBEDDING = 128
EPOCHS, BATCH, LEARNING_RATE = 6, 128, 4e-3
HEADS = ("medium", "gender", "hair", "expression", "background", "object")
UNLABELLED = -100  # what cross_entropy ignores
RECONSTRUCTED = 0.1  # this part of the training pictures is also seen through the autoencoder
ADVENTURER_REPEATS = 2  # few pictures, and the class that matters most
TRAINED, HELD_OUT_STYLE = (
    24576,
    256,
)  # captioned pictures to learn from; the last of the held-back style are for the test


class Classifier(nn.Module):
    """Images [B,3,128,128] in [0, 1] => logits of each head."""

    def __init__(self, labels: dict[str, list[str]]) -> None:
        super().__init__()
        self.labels = labels
        widths = [(3, 24, 2), (24, 48, 1), (48, 64, 2), (64, 96, 2), (96, 112, 1), (112, EMBEDDING, 2)]
        self.body = nn.Sequential(
            *(layer for width in widths for layer in block(*width)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.heads = nn.ModuleDict({name: nn.Linear(EMBEDDING, len(values)) for name, values in labels.items()})

    def embed(self, images: Tensor) -> Tensor:
        """Images => the features before the heads [B,128]."""
        return self.body(avg_pool2d(images, 2) * 2 - 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images => logits of each head."""
        features = self.embed(images)
        return {name: head(features) for name, head in self.heads.items()}


def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """Convolution, normalisation, activation."""
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def save(model: Classifier, path: Path) -> None:
    """Half precision; the labels travel in the metadata."""
    tensors = {
        name: tensor.half().contiguous() for name, tensor in model.state_dict().items() if tensor.is_floating_point()
    }
    save_file(tensors, path, metadata={"labels": json.dumps(model.labels)})


def load(path: str | Path) -> Classifier:
    """File => the classifier, single precision, ready to judge."""
    with safe_open(path, "pt") as file:
        model = Classifier(json.loads(file.metadata()["labels"]))
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        model.load_state_dict(weights, strict=False)  # batch counters are not kept
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def classify(model: Classifier, images: Tensor) -> dict[str, list[str]]:
    """Images [B,3,128,128] in [0, 1] => a label of each head for each image."""
    chunks = [model(chunk) for chunk in images.split(256)]
    return {
        name: [values[index] for chunk in chunks for index in chunk[name].argmax(1).tolist()]
        for name, values in model.labels.items()
    }


@torch.inference_mode()
def diversity(model: Classifier, images: Tensor) -> float:
    """1 - mean pairwise cosine of the embeddings, self-pairs left out."""
    features = normalize(model.embed(images), dim=1)
    cosines = features @ features.T
    count = len(images)
    return 1 - ((cosines.sum() - cosines.trace()) / (count * (count - 1))).item()


def encode_labels(rows: list[dict], labels: dict[str, list[str]]) -> dict[str, Tensor]:
    """Rows => class numbers of each head; what a row does not say is ignored by the loss."""
    numbers = {name: {value: number for number, value in enumerate(values)} for name, values in labels.items()}
    return {name: torch.tensor([numbers[name].get(row.get(name), UNLABELLED) for row in rows]) for name in labels}


def undamaged(pictures: Pictures, numbers: range) -> tuple[list[dict], Tensor]:
    """Rows and images of those that were not spoiled; a scene's thing is too small to be judged."""
    kept = [number for number in numbers if not pictures.rows[number]["degraded"]]
    rows = [pictures.rows[number] for number in kept]
    return [row | {"object": None} if row["kind"] == "scene" else row for row in rows], pictures.read(
        torch.tensor(kept)
    )


def read_split(data: Path, held_out: bool) -> tuple[list[dict], Tensor]:
    """Pictures of the base set and of the style it never sees."""
    style = Pictures(data, "adventurer")
    border = len(style) - HELD_OUT_STYLE
    base = Pictures(data, "heldout" if held_out else "captioned")
    rows, images = undamaged(base, range(min(TRAINED, len(base))))
    style_rows, style_images = undamaged(style, range(border, len(style)) if held_out else range(border))
    repeats = 1 if held_out else ADVENTURER_REPEATS
    return rows + style_rows * repeats, torch.cat([images, *[style_images] * repeats])


def through_vae(folder: Path, images: Tensor) -> Tensor:
    """uint8 => uint8 as the autoencoder shows them: samples of the diffusion model have its softness."""
    vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32)
    decoded = reconstruct(vae.to(memory_format=torch.channels_last), images)
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def augment(images: Tensor) -> Tensor:
    """Flips, small shifts, blur, noise, a little colour: never so much that a label changes."""
    if torch.rand(()) < 0.5:
        images = images.flip(-1)
    shift = [int(number) for number in torch.randint(-8, 9, (2,))]
    edge = images[..., :1, :1].mean().item()
    images = affine(images, 0.0, shift, float(torch.empty(()).uniform_(0.9, 1.1)), [0.0], fill=[edge])
    if torch.rand(()) < 0.5:
        images = gaussian_blur(images, [7, 7], [float(torch.empty(()).uniform_(0.4, 2.0))])
    gain, offset = 1 + 0.04 * torch.randn(len(images), 3, 1, 1), 0.015 * torch.randn(len(images), 3, 1, 1)
    return (images * gain + offset + 0.04 * torch.rand(len(images), 1, 1, 1) * torch.randn_like(images)).clamp(0, 1)


def train(model: Classifier, images: Tensor, targets: dict[str, Tensor]) -> None:
    """Some epochs with one learning-rate cycle."""
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    for _ in range(EPOCHS):
        started = time.monotonic()
        for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            logits = model(augment((to_pixels(images[chosen]) + 1) / 2))
            losses = [cross_entropy(logits[name], targets[name][chosen], ignore_index=UNLABELLED) for name in targets]
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
            schedule.step()
        print(f"loss {[round(loss.item(), 3) for loss in losses]}  {time.monotonic() - started:.0f} s", flush=True)


def accuracy(model: Classifier, images: Tensor, rows: list[dict]) -> dict[str, float]:
    """Share of right answers of each head, among the rows that have the label."""
    answers = classify(model, images.float() / 255)
    pairs = {
        name: [(row[name], answer) for row, answer in zip(rows, answers[name], strict=True) if row.get(name)]
        for name in answers
    }
    return {
        name: round(sum(truth == answer for truth, answer in found) / len(found), 4)
        for name, found in pairs.items()
        if found
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows, images = read_split(args.data, held_out=False)
    labels = {name: sorted({row[name] for row in rows if row.get(name)}) for name in HEADS}
    if args.vae:
        seen_again = torch.randperm(len(rows))[: int(RECONSTRUCTED * len(rows))]
        rows += [rows[index] for index in seen_again]
        images = torch.cat([images, through_vae(args.vae, images[seen_again])])
    model = Classifier(labels).to(memory_format=torch.channels_last)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters, {len(rows)} pictures", flush=True)
    train(model.train(), images, encode_labels(rows, labels))
    save(model, args.out)
    model = load(args.out)
    held_rows, held_images = read_split(args.data, held_out=True)
    print("held out:", accuracy(model, held_images, held_rows))
    style = [number for number, row in enumerate(held_rows) if row["medium"] == "adventurer"]
    print("held-back style:", accuracy(model, held_images[style], [held_rows[number] for number in style]))


if __name__ == "__main__":
    main()
