"""Does choosing a step pay? Two kinds of runs that are too long, the step they choose against their last one.

python checkpoints/toonbase/recipe/chosen_step.py        (from the repository's root)

Judged on prompts and seeds that were not used for choosing: by the score of `fidelity`, and by the classifier, whose
answers are balanced as the score balances its parts. Runs that are there are not run again.
"""

import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, harmonic_mean, stdev

import torch
from classifier import classify, load
from PIL import Image
from scipy.stats import t
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from lightning_dreambooth.evaluation.tables import read_csv

RUNS = Path("runs")
EACH = 32  # pictures of a prompt that the classifier sees
LONG = {  # kinds of runs that are too long: their seeds, and what they are given
    # Without the prior loss the class is lost within a hundred steps: the example's four hundred are much too many.
    "noprior": (range(1, 7), ["--model.prior_weight=0", "--fidelity.every_n_steps=25"]),
    "long": (range(1, 4), ["--trainer.max_steps=1200"]),  # three times as long as the example
}
PROMPTS = ("a photo of sks girl with blue hair", "a photo of sks girl with red hair", "a hand drawing of sks girl")
OTHERS = [
    f"--fidelity.prompts=[{', '.join(PROMPTS)}]",
    "--fidelity.unrelated_prompts=[a painting of a boy, a flat icon of a cat]",
    "--data.class_prompt=a photo of a girl with black hair",
    "--fidelity.seed=5000", "--fidelity.num_images=8", "--fidelity.base=checkpoints/toonbase",
]  # fmt: skip
# The part of a score that a prompt is drawn for, and which of the classifier's heads should answer what.
JUDGED = (
    ("identity", "a photo of sks girl with blue hair", "medium", "adventurer"),
    ("identity", "a photo of sks girl with red hair", "medium", "adventurer"),
    ("prompt", "a photo of sks girl with blue hair", "hair", "blue"),
    ("prompt", "a photo of sks girl with red hair", "hair", "red"),
    ("class", "a photo of a girl with black hair", "medium", "photo"),
    ("class", "a photo of a boy with red hair", "medium", "photo"),
)


def run(verb: str, name: str, *words: str) -> Path:
    """Runs a verb under a name, or goes on with it, unless it is done."""
    folder, done = RUNS / name, RUNS / f"{name}.done"
    if not done.is_file():
        if verb == "fit":
            words = (*words, "--ckpt_path=last")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "lightning_dreambooth", verb, *words, f"--name={name}"], check=True)
        done.touch()
    return folder


def pictures(folder: Path) -> Tensor:
    """What `predict` has drawn, in [0, 1]."""
    drawn = []
    for path in sorted(folder.glob("0*.png")):
        with Image.open(path) as picture:
            drawn.append(pil_to_tensor(picture).float() / 255)
    return torch.stack(drawn)


def judged(name: str, export: Path) -> dict[str, float]:
    """An export => its score on other prompts, and in which share of pictures the classifier sees what was asked."""
    measured = run("validate", f"{name}-other", "-c", "configs/toon.yaml", f"--model.pretrained={export}", *OTHERS)
    classifier = load(Path(__file__).parent / "classifier.safetensors")
    found = {"score": read_csv(measured / "validation.csv")[-1]["score"]}
    prompts = list(dict.fromkeys(prompt for _, prompt, _, _ in JUDGED))
    drawn = run(
        "predict", f"{name}-drawn", f"--model.pretrained={export}", f"--samples.prompts=[{', '.join(prompts)}]",
        f"--samples.num_images={EACH}", "--samples.seed=6000", "--samples.guidance_scale=4", "--samples.batch_size=32",
    )  # fmt: skip
    said = classify(classifier, pictures(drawn))
    parts = defaultdict(list)
    for part, prompt, head, answer in JUDGED:
        first = prompts.index(prompt) * EACH
        parts[part].append(fmean(each == answer for each in said[head][first : first + EACH]))
    found |= {f"classifier, {part}": fmean(shares) for part, shares in parts.items()}
    return found | {"classifier": harmonic_mean(map(fmean, parts.values()))}


def compare(kind: str) -> None:
    """Prints a row per figure: the chosen step, the last one, and the difference with its 95 % Student interval."""
    seeds, words = LONG[kind]
    chosen, last = [], []
    for seed in seeds:
        name = f"{kind}-seed-{seed}"
        folder = run("fit", name, "-c", "configs/toon.yaml", *words, f"--seed_everything={seed}")
        measured = read_csv(folder / "validation.csv")
        best = max(measured, key=lambda row: row.get("score", 0))
        print(
            f"{name}: step {best['step']:.0f} is chosen, {best['score']:.3f}; the last is {measured[-1]['score']:.3f}"
        )
        for side, row, into in (("chosen", best, chosen), ("last", measured[-1], last)):
            into.append(judged(f"{name}-{side}", folder / "exports" / f"step-{row['step']:06.0f}"))
    for figure in chosen[0]:
        differences = [one[figure] - other[figure] for one, other in zip(chosen, last, strict=True)]
        half = t.ppf(0.975, len(seeds) - 1) * stdev(differences) / len(seeds) ** 0.5
        means = [fmean(each[figure] for each in side) for side in (chosen, last)]
        print(f"{figure}: chosen {means[0]:.3f}, last {means[1]:.3f}, {fmean(differences):+.3f} ± {half:.3f}")


if __name__ == "__main__":
    for too_long in LONG:
        compare(too_long)
