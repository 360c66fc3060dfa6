"""Does the model draw what it is asked? The judge looks at samples of combinations that were never trained on.

python measure.py --model <folder> --data <pictures> --classifier classifier.safetensors --grid grid.png
"""

import argparse
import random
from pathlib import Path

import torch
from classifier import Classifier, classify, load
from diffusers import DDIMScheduler, StableDiffusionPipeline
from pictures import Pictures
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

GUIDANCE, STEPS, BATCH = 4.0, 25, 32
JUDGED = {
    "face": ("medium", "gender", "hair", "expression", "background"),
    "object": ("medium", "object", "background"),
}
COLUMNS, CELL_PX, LABEL_PX = 12, 128, 50


def with_article(words: str) -> str:
    """Words => the same after a or an."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def prompt(row: dict) -> str:
    """Labels => the plainest caption that says them all."""
    if row["kind"] == "object":
        thing = with_article(row["object"])
    else:
        mood = "" if row["expression"] == "plain" else f"{row['expression']} "
        thing = f"{with_article(mood + row['gender'])} with {row['hair']} hair"
    return f"{with_article(row['medium'])} of {thing} on {with_article(row['background'])} background"


def held_out_prompts(rows: list[dict], kind: str, count: int) -> dict[str, dict]:
    """Prompt => labels, each combination once; glasses would hide an expression."""
    found = {prompt(row): row for row in rows if row["kind"] == kind and not row.get("glasses")}
    chosen = random.Random(0).sample(sorted(found), min(count, len(found)))
    return {text: found[text] for text in chosen}


@torch.inference_mode()
def sample(pipeline: StableDiffusionPipeline, prompts: list[str]) -> Tensor:
    """Prompts => images [B,3,128,128] in [0, 1]; each has noise of its own seed."""
    images = []
    for start in range(0, len(prompts), BATCH):
        chunk = prompts[start : start + BATCH]
        generators = [torch.Generator().manual_seed(start + index) for index in range(len(chunk))]
        drawn = pipeline(
            chunk, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators, output_type="pt"
        )
        images.append(drawn.images)
    return torch.cat(images).float()


def report(kind: str, rows: list[dict], judged: dict[str, list[str]]) -> None:
    """Prints how often each asked label was recognised, and what was taken for what; `plain` was not asked for."""
    for name in JUDGED[kind]:
        pairs = [(row[name], answer) for row, answer in zip(rows, judged[name], strict=True) if row[name] != "plain"]
        wrong = [f"{asked}>{answer}" for asked, answer in pairs if asked != answer]
        right = 100 * (1 - len(wrong) / len(pairs))
        print(f"{kind} {name}: {right:.1f} % of {len(pairs)}   wrong: {', '.join(wrong[:8]) or 'none'}")


def draw_grid(images: Tensor, labels: list[str], path: Path) -> None:
    """Pictures with their prompts."""
    rows = -(-len(images) // COLUMNS)
    grid = Image.new("RGB", (COLUMNS * CELL_PX, rows * (CELL_PX + LABEL_PX)), "white")
    draw = ImageDraw.Draw(grid)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = index % COLUMNS * CELL_PX, index // COLUMNS * (CELL_PX + LABEL_PX)
        grid.paste(to_pil_image(image), (left, top))
        words = label.removeprefix("a ").replace(" background", "")
        for line in range(3):
            draw.text((left, top + CELL_PX + 14 * line), words[21 * line : 21 * (line + 1)], fill="black")
    grid.save(path)


def measure(
    pipeline: StableDiffusionPipeline, classifier: Classifier, rows: list[dict], count: int, grid: Path
) -> None:
    """Samples, judges and shows each kind of prompt."""
    drawn, labels = [], []
    for kind in JUDGED:
        asked = held_out_prompts(rows, kind, count)
        images = sample(pipeline, list(asked))
        report(kind, list(asked.values()), classify(classifier, images))
        drawn.append(images[: 4 * COLUMNS])
        labels += list(asked)[: 4 * COLUMNS]
    draw_grid(torch.cat(drawn), labels, grid)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    for name in ("model", "data", "classifier", "grid"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=128, help="of each kind")
    args = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(args.model, use_safetensors=True, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    rows = [row for row in Pictures(args.data, "heldout").rows if not row["degraded"]]
    measure(pipeline, load(args.classifier), rows, args.prompts, args.grid)


if __name__ == "__main__":
    main()
