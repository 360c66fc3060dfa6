from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from lightning_dreambooth.data.concepts import Concept
from lightning_dreambooth.diffusion.requests import SamplingSettings
from lightning_dreambooth.evaluation import metrics
from lightning_dreambooth.evaluation.encoders import Clip, Dino, Encoders
from lightning_dreambooth.evaluation.evaluator import FidelityEvaluator, InstanceSet
from lightning_dreambooth.evaluation.prompts import EvaluationPrompts
from lightning_dreambooth.evaluation.score import score

CONCEPTS = [
    Concept("a photo of sks girl", "girl", "a photo of a girl", "class", "sks"),
    Concept("a photo of pink girl", "other", "a photo of a girl", "class", "pink"),
]
PROMPTS = EvaluationPrompts(
    ["a photo of sks girl", "a photo of sks", "a photo of pink girl"], ["a boy"], range(2),
    SamplingSettings("", 2, 2.0, "dpm++"),
)  # fmt: skip


def images(count: int, seed: int) -> torch.Tensor:
    """Coloured noise [count, 3, 32, 32], each set with a colour of its own."""
    chance = torch.Generator().manual_seed(seed)
    colour = torch.randint(256, (1, 3, 1, 1), generator=chance)
    noise = torch.randint(-60, 60, (count, 3, 8, 8), generator=chance)
    return (colour + noise).clamp(0, 255).to(torch.uint8).repeat_interleave(4, 2).repeat_interleave(4, 3)


def unit(rows: torch.Tensor) -> np.ndarray:
    array = rows.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def off_diagonal(square: np.ndarray) -> np.ndarray:
    return square[~np.eye(len(square), dtype=bool)].reshape(len(square), -1)


@pytest.fixture(scope="module")
def clip(small_clip: Path) -> Clip:
    return Clip(str(small_clip))


@pytest.fixture(scope="module")
def dino(small_dino: Path) -> Dino:
    return Dino(str(small_dino))


@pytest.mark.parametrize("with_dino", [False, True])
def test_every_metric_is_what_numpy_makes_of_the_images_it_names(clip: Clip, dino: Dino, with_dino: bool) -> None:
    probes = PROMPTS.probes(CONCEPTS)
    assert [probe.kind for probe in probes] == ["instance"] * 6 + ["class"] * 2 + ["unrelated"] * 2
    before, after = images(len(probes), 1), images(len(probes), 2)
    faces = [images(4, 3), images(3, 4)]
    texts = [["a photo of girl"] * 4, ["a photo of girl"] * 3]
    shown = [[to_pil_image(face) for face in concept] for concept in faces]
    instances = [InstanceSet(images, prompts) for images, prompts in zip(shown, texts, strict=True)]
    encoders = Encoders(clip, dino if with_dino else None)
    evaluator = FidelityEvaluator(probes, CONCEPTS, instances, before, encoders, torch.device("cpu"))
    measured_all = evaluator.measure(after)

    def embedded(encoder: Clip | Dino) -> list[np.ndarray]:
        return [unit(encoder.images([to_pil_image(image) for image in images])) for images in (after, before, *faces)]

    now, then, one, two = embedded(clip)
    probe_texts = unit(clip.texts([probe.text for probe in probes]))
    expected = {
        "clip_i": ((now[:4] @ one.T).mean() + (now[4:6] @ two.T).mean()) / 2,
        "clip_i/sks_under_sks": (now[:4] @ one.T).mean(),
        "clip_i/pink_under_sks": (now[:4] @ two.T).mean(),
        "clip_i/sks_under_pink": (now[4:6] @ one.T).mean(),
        "clip_i/pink_under_pink": (now[4:6] @ two.T).mean(),
        "clip_t": (now[:6] * probe_texts[:6]).sum(1).mean(),
    }
    instance_text = unit(clip.texts(["a photo of girl"]))[0]
    asking = now[2:4]  # of `a photo of sks`, whose text is not that of the instance prompt
    expected["attributes"] = (asking * probe_texts[2:4]).sum(1).mean() - (asking @ instance_text).mean()
    ceiling = {
        "clip_i": (off_diagonal(one @ one.T).mean() + off_diagonal(two @ two.T).mean()) / 2,
        "clip_t": ((one @ instance_text).mean() + (two @ instance_text).mean()) / 2,
    }
    tail = "" if with_dino else "/small"
    if with_dino:
        now, then, one, two = embedded(dino)
        expected["dino"] = ((now[:4] @ one.T).mean() + (now[4:6] @ two.T).mean()) / 2
        ceiling["dino"] = (off_diagonal(one @ one.T).mean() + off_diagonal(two @ two.T).mean()) / 2
    pairs = [(now[i] @ now[i + 1]) for i in (0, 2, 4)]
    expected |= {
        f"pres{tail}": ((now[6:8] @ one.T).mean() + (now[6:8] @ two.T).mean()) / 2,
        f"drift{tail}": 1 - (now[6:] * then[6:]).sum(1).mean(),
        f"nearest{tail}": ((now[:4] @ one.T).max(1).mean() + (now[4:6] @ two.T).max(1).mean()) / 2,
        f"div/{'vit' if with_dino else 'small'}": 1 - np.mean(pairs),
    }
    ceiling |= {
        f"pres{tail}": ceiling["dino" if with_dino else "clip_i"],
        f"nearest{tail}": (off_diagonal(one @ one.T).max(1).mean() + off_diagonal(two @ two.T).max(1).mean()) / 2,
    }
    measured = {name: value for name, value in measured_all.items() if not name.startswith(("score", "dino/"))}
    assert measured == pytest.approx(expected, abs=1e-6)
    assert evaluator.ceiling == pytest.approx(ceiling, abs=1e-6)
    without = set() if with_dino else {"dino"}  # CLIP stands in, under the names of the others
    assert {name.split("/")[0] for name in measured_all} == {*metrics.measured_by("validation")} - without


def test_the_score_compares_the_metrics_that_it_names(clip: Clip) -> None:
    probes = PROMPTS.probes(CONCEPTS)
    faces = [InstanceSet([to_pil_image(face) for face in images(3, seed)], ["a girl"] * 3) for seed in (3, 4)]
    evaluator = FidelityEvaluator(probes, CONCEPTS, faces, images(len(probes), 1), Encoders(clip), torch.device("cpu"))
    measured = evaluator.measure(images(len(probes), 2))
    base_texts = metrics.cosines(evaluator.base_embeddings["clip"][:6], evaluator.texts[8:])
    instances = unit(clip.images(faces[0].images))
    asked, plain = (unit(clip.texts([text]))[0] for text in ("a photo of", "a photo of girl"))
    floors = {"prompt": float(base_texts.mean()), "attributes": (instances @ asked - instances @ plain).mean()}
    parts = {"identity": "clip_i", "prompt": "clip_t", "attributes": "attributes", "class": "pres/small"}
    expected = score(
        {part: measured[name] for part, name in parts.items()},
        {part: evaluator.base[name] for part, name in parts.items()},
        evaluator.ceiling["clip_i"], floors,
    )  # fmt: skip
    assert {name: value for name, value in measured.items() if name.startswith("score")} == pytest.approx(expected)
