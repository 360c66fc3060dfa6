"""Does choosing a step pay? Three runs that are much too long, the step they choose against their last one.

python checkpoints/toonbase/recipe/chosen_step.py        (from the repository's root)

Judged by the score of `fidelity` on prompts and seeds that were not used for choosing, and by the classifier. Runs that
are there are not run again.
"""

import csv
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import torch
from classifier import classify, load
from PIL import Image
from scipy.stats import t
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

RUNS = Path("checkpoints")
SEEDS = (1, 2, 3)
EACH = 32  # pictures of a prompt that the classifier sees
# Without the prior loss the class is lost within a hundred steps: four hundred are much too many.
LONG = ["--model.prior_weight=0", "--fidelity.every_n_steps=25"]
PROMPTS = ("a photo of sks girl with blue hair", "a photo of sks girl with red hair", "a hand drawing of sks girl")
OTHERS = [
    f"--fidelity.prompts=[{', '.join(PROMPTS)}]",
    "--fidelity.unrelated_prompts=[a painting of a boy, a flat icon of a cat face]",
    "--fidelity.seed=5000", "--fidelity.num_images=8", "--fidelity.base=checkpoints/toonbase",
]  # fmt: skip
# What the classifier should say of each prompt: which head, and what it answers.
JUDGED = {
    "a photo of sks girl": ("medium", "adventurer"),
    "a photo of sks girl with blue hair": ("hair", "blue"),
    "a photo of a girl": ("medium", "photo"),
    "a photo of a boy": ("gender", "boy"),
}


def run(verb: str, name: str, *words: str) -> Path:
    """Runs a verb under a name, unless it has been run."""
    done = RUNS / f"{name}.done"
    if not done.is_file():
        subprocess.run([sys.executable, "-m", "lightning_dreambooth", verb, *words, f"--name={name}"], check=True)
        done.touch()
    return RUNS / name


def rows(folder: Path) -> list[dict[str, float]]:
    """The figures of a run."""
    with (folder / "validation.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def pictures(folder: Path) -> Tensor:
    """What `predict` has drawn, in [0, 1]."""
    drawn = []
    for path in sorted(folder.glob("0*.png")):
        with Image.open(path) as picture:
            drawn.append(pil_to_tensor(picture).float() / 255)
    return torch.stack(drawn)


def judged(name: str, export: Path) -> dict[str, float]:
    """An export => its score on other prompts, and how often the classifier says what was asked."""
    measured = run("validate", f"{name}-other", "-c", "configs/toon.yaml", f"--model.pretrained={export}", *OTHERS)
    classifier = load(Path(__file__).parent / "classifier.safetensors")
    found = {"score": rows(measured)[-1]["score"]}
    drawn = run(
        "predict", f"{name}-drawn", f"--model.pretrained={export}", f"--samples.prompts=[{', '.join(JUDGED)}]",
        f"--samples.num_images={EACH}", "--samples.seed=6000", "--samples.guidance_scale=4", "--samples.batch_size=32",
    )  # fmt: skip
    said = classify(classifier, pictures(drawn))
    for place, (prompt, (head, answer)) in enumerate(JUDGED.items()):
        mine = said[head][place * EACH : (place + 1) * EACH]
        found[f"{prompt}: {head} {answer}"] = fmean(each == answer for each in mine)
    return found | {"classifier": fmean(list(found.values())[1:])}


def main() -> None:
    """Prints a row per figure: the chosen step, the last one, and the difference with its 95 % Student interval."""
    chosen, last = [], []
    for seed in SEEDS:
        folder = run("fit", f"long-seed-{seed}", "-c", "configs/toon.yaml", *LONG, f"--seed_everything={seed}")
        best = max(rows(folder), key=lambda row: row.get("score", 0))
        print(f"seed {seed}: step {best['step']:.0f} is chosen, score {best['score']:.3f}; "
              f"the last one scores {rows(folder)[-1]['score']:.3f}")
        chosen.append(judged(f"long-seed-{seed}-chosen", folder / "exports" / f"step-{best['step']:06.0f}"))
        last.append(judged(f"long-seed-{seed}-last", folder / "exports" / "step-000400"))
    for name in chosen[0]:
        differences = [one[name] - other[name] for one, other in zip(chosen, last, strict=True)]
        half = t.ppf(0.975, len(SEEDS) - 1) * stdev(differences) / len(SEEDS) ** 0.5
        means = [fmean(each[name] for each in side) for side in (chosen, last)]
        print(f"{name}: chosen {means[0]:.3f}, last {means[1]:.3f}, difference {fmean(differences):+.3f} ± {half:.3f}")


if __name__ == "__main__":
    main()
