from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from lightning_dreambooth.data.concepts import Concept
from lightning_dreambooth.evaluation.encoders import Clip, Dino
from lightning_dreambooth.evaluation.evaluator import FidelityEvaluator
from lightning_dreambooth.evaluation.prompts import Protocol

CONCEPTS = [
    Concept("a photo of sks girl", "girl", "a photo of a girl", "class", "sks"),
    Concept("a photo of pink girl", "other", "a photo of a girl", "class", "pink"),
]
PROTOCOL = Protocol(["a photo of sks girl", "a photo of sks", "a photo of pink girl"], ["a boy"], range(2),
                    ("", 2, 2.0, "dpm++"), 4)  # fmt: skip


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
def test_every_figure_is_what_numpy_makes_of_the_images_it_names(clip: Clip, dino: Dino, with_dino: bool) -> None:
    probes = PROTOCOL.probes(CONCEPTS)
    assert [probe.kind for probe in probes] == ["instance"] * 6 + ["class"] * 2 + ["unrelated"] * 2
    before, after = images(len(probes), 1), images(len(probes), 2)
    faces = [images(4, 3), images(3, 4)]
    texts = [["a photo of girl"] * 4, ["a photo of girl"] * 3]
    shown = [[to_pil_image(face) for face in each] for each in faces]
    judge = FidelityEvaluator(
        probes, CONCEPTS, shown, texts, before, clip, dino if with_dino else None, None, torch.device("cpu")
    )
    figures = judge.measure(after)

    def embedded(encoder: Clip | Dino) -> list[np.ndarray]:
        return [unit(encoder.images([to_pil_image(each) for each in some])) for some in (after, before, *faces)]

    now, then, one, two = embedded(clip)
    said = unit(clip.texts([probe.text for probe in probes]))
    expected = {
        "clip_i": ((now[:4] @ one.T).mean() + (now[4:6] @ two.T).mean()) / 2,
        "clip_i/sks_under_sks": (now[:4] @ one.T).mean(),
        "clip_i/pink_under_sks": (now[:4] @ two.T).mean(),
        "clip_i/sks_under_pink": (now[4:6] @ one.T).mean(),
        "clip_i/pink_under_pink": (now[4:6] @ two.T).mean(),
        "clip_t": (now[:6] * said[:6]).sum(1).mean(),
    }
    own = unit(clip.texts(["a photo of girl"]))[0]
    ceiling = {
        "clip_i": (off_diagonal(one @ one.T).mean() + off_diagonal(two @ two.T).mean()) / 2,
        "clip_t": ((one @ own).mean() + (two @ own).mean()) / 2,
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
    measured = {name: value for name, value in figures.items() if not name.startswith(("score", "dino/"))}
    assert measured == pytest.approx(expected, abs=1e-6)
    assert judge.ceiling == pytest.approx(ceiling, abs=1e-6)


def test_the_score_is_the_harmonic_mean_of_the_ways_that_are_there(clip: Clip) -> None:
    probes = PROTOCOL.probes(CONCEPTS)
    faces = [[to_pil_image(face) for face in images(3, seed)] for seed in (3, 4)]
    texts = [["a girl"] * 3] * 2
    judge = FidelityEvaluator(
        probes, CONCEPTS, faces, texts, images(len(probes), 1), clip, None, None, torch.device("cpu")
    )
    judge.ceiling["clip_i"] = 0.9
    judge.untuned = {"clip_i": 0.5, "clip_t": judge._floor() + 0.1, "pres/small": 0.4}
    half = {"clip_i": 0.7, "clip_t": judge._floor() + 0.05, "pres/small": 0.5}
    assert judge.score(half) == pytest.approx(
        {"score": 3 / (1 / 0.5 + 1 / 0.5 + 1 / 0.8), "score/identity": 0.5, "score/prompt": 0.5, "score/class": 0.8}
    )
    judge.untuned |= {"clip_t": judge._floor() + 0.01, "pres/small": 0.89}
    assert judge.score(half) == pytest.approx({"score": 0.5, "score/identity": 0.5})
    judge.untuned["clip_i"] = 0.89
    assert judge.score(half) == {}
