"""What toonclip's numbers are worth: zero-shot answers, and which of two pictures it takes for the same character.

PYTHONPATH=../../toonbase/recipe python measure.py --data <pictures> --adventurer <its pictures> --toonbase <folder>
"""

import argparse
from itertools import product
from pathlib import Path

import open_clip
import torch
from classifier import through_vae
from diffusers import DDIMScheduler, StableDiffusionPipeline
from pictures import read_rows
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

FOLDER = Path(__file__).parents[1]
MODEL = f"local-dir:{FOLDER}"
ASKED = {"face": ("medium", "gender", "hair", "background"), "object": ("medium", "object", "background")}
BARE = {"cherries", "grapes", "cheese", "bread", "corn"}  # words that take no article
TRIPLES = 1000
HERO_HAIR = torch.tensor([0x5A, 0x3A, 0x22])  # of the girl in sks_girl, and of nobody else in that style
GUIDANCE, STEPS = 4.0, 25


class Clip:
    """The model as open_clip loads it."""

    def __init__(self) -> None:
        self.model, self.preprocess = open_clip.create_model_from_pretrained(MODEL)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(MODEL)

    @torch.inference_mode()
    def images(self, pictures: list[Image.Image]) -> Tensor:
        """Pictures => unit embeddings."""
        pixels = torch.stack([self.preprocess(picture) for picture in pictures])
        return torch.cat([self.model.encode_image(chunk, normalize=True) for chunk in pixels.split(256)])

    @torch.inference_mode()
    def texts(self, prompts: list[str]) -> Tensor:
        """Prompts => unit embeddings."""
        chunks = self.tokenizer(prompts).split(256)
        return torch.cat([self.model.encode_text(chunk, normalize=True) for chunk in chunks])


def read(files: list[Path]) -> list[Image.Image]:
    """Files => pictures."""
    return [Image.open(file).convert("RGB") for file in files]


def soften(vae: Path, pictures: list[Image.Image]) -> list[Image.Image]:
    """Pictures as the autoencoder shows them at 64 px: what a diffusion model draws has its softness."""
    small = [pil_to_tensor(picture.resize((64, 64), Image.Resampling.BICUBIC)) for picture in pictures]
    return [to_pil_image(image) for image in through_vae(vae, torch.stack(small))]


def with_article(words: str) -> str:
    """Words => words with a or an, where they take one."""
    return words if words in BARE else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def prompt(labels: dict[str, str]) -> str:
    """Labels => the plainest caption that says them all."""
    thing = labels.get("object") or f"{labels['gender']} with {labels['hair']} hair"
    return f"a {labels['medium']} of {with_article(thing)} on {with_article(labels['background'])} background"


def all_labels(rows: list[dict], kind: str) -> list[dict[str, str]]:
    """Every combination of the words that occur: 1,024 of people, 3,680 of things."""
    words = [sorted({row[name] for row in rows if row["kind"] == kind}) for name in ASKED[kind]]
    return [dict(zip(ASKED[kind], combination, strict=True)) for combination in product(*words)]


def zero_shot(clip: Clip, pictures: list[Image.Image], rows: list[dict], candidates: list[dict[str, str]]) -> str:
    """How often the nearest of all prompts says what the row says."""
    nearest = (clip.images(pictures) @ clip.texts([prompt(labels) for labels in candidates]).T).argmax(1)
    answers = [candidates[index] for index in nearest]
    right = {
        name: sum(row[name] == answer[name] for row, answer in zip(rows, answers, strict=True))
        for name in candidates[0]
    }
    return f"{len(rows)} pictures: " + ", ".join(f"{name} {100 * n / len(rows):.1f} %" for name, n in right.items())


def triples(anchors: Tensor, positives: Tensor, negatives: Tensor) -> str:
    """How often another picture of the character is nearer than one of somebody else; anchors[i] is positives[i].

    Args:
        anchors: Unit embeddings of the character's pictures [N,D].
        positives: Of the same pictures, perhaps softened [N,D].
        negatives: Of other characters [M,D], softened as the positives are.
    """
    random = torch.Generator().manual_seed(0)
    anchor = torch.randint(len(anchors), (TRIPLES,), generator=random)
    other = (anchor + torch.randint(1, len(anchors), (TRIPLES,), generator=random)) % len(anchors)
    negative = torch.randint(len(negatives), (TRIPLES,), generator=random)
    near = (anchors[anchor] * positives[other]).sum(1)
    far = (anchors[anchor] * negatives[negative]).sum(1)
    right = (near > far).float().mean()
    return f"{100 * right:.1f} %   mean cosine same {near.mean():.3f}, other {far.mean():.3f}"


def is_hero(picture: Image.Image) -> bool:
    """Whether a rendering of the style shows the girl of sks_girl: the attribute table does not say."""
    return bool((pil_to_tensor(picture).permute(1, 2, 0) == HERO_HAIR).all(-1).sum() > 50)


def report_zero_shot(clip: Clip, data: Path, vae: Path) -> None:
    """Held-out pictures, sharp and softened."""
    rows = read_rows(data, "heldout")
    for kind in ASKED:
        found = [row for row in rows if row["kind"] == kind]
        pictures = read([data / row["file"] for row in found])
        candidates = all_labels(rows, kind)
        print(f"{kind}: {zero_shot(clip, pictures, found, candidates)}")
        print(f"{kind}, softened: {zero_shot(clip, soften(vae, pictures), found, candidates)}")


def report_identity(clip: Clip, data: Path, adventurer: Path, vae: Path) -> None:
    """Triples with each kind of negative, sharp and softened."""
    hero = read(sorted((FOLDER.parent / "images/sks_girl").glob("*.png")))
    rows = [row for split in ("train", "heldout") for row in read_rows(adventurer, split)]
    renderings = zip(rows, read([adventurer / row["file"] for row in rows]), strict=True)
    others = [(row, picture) for row, picture in renderings if not is_hero(picture)]
    alike = [picture for row, picture in others if row["gender"] == "girl" and row["hair"] in ("brown", "black")]
    faces = [row for row in read_rows(data, "heldout") if row["kind"] == "face"]
    negatives = {
        "sks_style": read(sorted((FOLDER.parent / "images/sks_style").glob("*.png"))),
        "other adventurers": [picture for _, picture in others],
        "of these, girls with brown or black hair": alike,
        "other styles": read([data / row["file"] for row in faces]),
    }
    anchors, softened = clip.images(hero), clip.images(soften(vae, hero))
    for name, pictures in negatives.items():
        print(f"{name} ({len(pictures)}): {triples(anchors, anchors, clip.images(pictures))}")
        print(f"{name}, softened: {triples(anchors, softened, clip.images(soften(vae, pictures)))}")


@torch.inference_mode()
def report_drawn(clip: Clip, data: Path, toonbase: Path) -> None:
    """Pictures that the base model draws for held-out prompts, and whether their own prompt is the nearest."""
    pipeline = StableDiffusionPipeline.from_pretrained(toonbase, use_safetensors=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    rows = read_rows(data, "heldout")
    asked = {prompt(row): row for row in rows if row["kind"] == "face"}
    generators = [torch.Generator().manual_seed(index) for index in range(len(asked))]
    with torch.autocast("cpu", torch.bfloat16):
        drawn = pipeline(list(asked), guidance_scale=GUIDANCE, num_inference_steps=STEPS, generator=generators).images
    print(f"drawn people: {zero_shot(clip, drawn, list(asked.values()), all_labels(rows, 'face'))}")
    cosines = clip.images(drawn) @ clip.texts(list(asked)).T
    apart = (cosines.sum() - cosines.trace()) / (cosines.numel() - len(cosines))
    print(f"drawn people, mean cosine with the own prompt {cosines.diagonal().mean():.3f}, with others {apart:.3f}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    for name in ("data", "adventurer", "toonbase"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    clip = Clip()
    report_zero_shot(clip, args.data, args.toonbase / "vae")
    report_identity(clip, args.data, args.adventurer, args.toonbase / "vae")
    report_drawn(clip, args.data, args.toonbase)


if __name__ == "__main__":
    main()
