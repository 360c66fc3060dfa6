from collections import Counter
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import pytest
import torch
from helpers.comparison import assert_same, left_behind
from PIL import Image

from lightning_dreambooth.data.buckets import bucket
from lightning_dreambooth.data.concepts import TrainingImage
from lightning_dreambooth.data.dataset import PairDataset, training_views
from lightning_dreambooth.data.draws import DrawSource
from lightning_dreambooth.data.images import View, crop_box
from lightning_dreambooth.data.training_images import ConceptImages

ASPECTS = [1 / 3, 0.5, 9 / 16, 2 / 3, 0.75, 1, 1.1, 4 / 3, 1.5, 16 / 9, 2, 3]
WIDE, TALL = (96, 48), (48, 96)


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize(("resolution_px", "factor"), [(512, 8), (768, 8), (64, 4)])
def test_a_bucket_has_the_area_of_the_resolution_and_cuts_off_little(
    aspect: float, resolution_px: int, factor: int
) -> None:
    size = round(1000 * sqrt(aspect)), round(1000 / sqrt(aspect))
    width, height = bucket(size, resolution_px, factor)
    assert width % factor == height % factor == 0
    assert width * height == pytest.approx(resolution_px**2, rel=0.08)
    left, top, right, bottom = crop_box(*size, View(), (width, height))
    assert (right - left) * (bottom - top) > 0.93 * size[0] * size[1]


def test_a_square_has_the_bucket_of_squares() -> None:
    assert bucket((1000, 1000), 512, 8) == (512, 512)


def images(name: str, count: int) -> list[TrainingImage]:
    return [TrainingImage(Path(f"{name}{i}.png"), "girl") for i in range(count)]


def dataset(together: int) -> PairDataset:
    buckets = [
        ConceptImages(images("wide", 4), images("class wide", 5), 1, None, 0, WIDE),
        ConceptImages(images("tall", 2), images("class tall", 3), 1, None, 0, TALL),
    ]
    draw, prompts = DrawSource(0, 0.1, (4, 8, 8), 1000), {"": torch.tensor([0]), "girl": torch.tensor([1])}
    views = training_views("center", False, 0)
    return PairDataset(buckets, prompts, views, 64, 0.0, 0, draw, None, None, together)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_a_batch_is_of_one_bucket_and_every_image_is_seen_equally_often(together: int) -> None:
    data = dataset(together)
    pairs = [data.images(index) for index in range(6 * 3 * together * 4)]
    for start in range(0, len(pairs), together):
        assert len({name for pair in pairs[start : start + together] for name in [shape(pair[0]), shape(pair[1])]}) == 1
    seen = Counter(pair[0].path.name for pair in pairs)
    assert len(seen) == 6
    assert len({*seen.values()}) == 1


def shape(image: TrainingImage) -> str:
    return "wide" if "wide" in image.path.name else "tall"


def test_instance_and_class_rows_have_the_shape_of_their_bucket(here: Path) -> None:
    for name, size, count in (("wide", WIDE, 4), ("class wide", WIDE, 5), ("tall", TALL, 2), ("class tall", TALL, 3)):
        for number in range(count):
            Image.new("RGB", size, "teal").save(f"{name}{number}.png")
    data = dataset(2)
    shapes = set()
    for start in range(0, 12, 2):
        batch = data.collate([data[start], data[start + 1]])
        assert batch.images.values.shape[0] == 4
        assert batch.draws.noise.shape == batch.draws.posterior.shape
        assert [side // 8 for side in batch.images.values.shape[2:]] == list(batch.draws.noise.shape[2:])
        shapes.add(tuple(batch.images.values.shape[2:]))
    assert shapes == {WIDE[::-1], TALL[::-1]}


SETTINGS = {"data__buckets": True, "data__resolution": 64, "data__flip": True, "checkpoint__every_n_steps": 2}


@pytest.fixture
def shapes(here: Path) -> None:
    for path in Path("girl").iterdir():
        path.unlink()
    for number, size in enumerate([(200, 100), (210, 100), (100, 100), (90, 180)]):
        image = Image.effect_noise(size, 80).convert("RGBA")
        image.paste((0, 0, 0, 0), (0, 0, 30, 30))
        image.save(f"girl/{number}.png")


def test_class_images_are_drawn_in_the_shapes_of_the_buckets(
    run: Callable[..., object], shapes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run(**SETTINGS, data__num_class_images=8, name="buckets")
    drawn = {path.name: sorted(path.glob("*.png")) for path in sorted(Path("class").iterdir()) if path.is_dir()}
    assert {name: len(files) for name, files in drawn.items()} == {"44x92": 2, "64x64": 2, "92x44": 4}
    for name, files in drawn.items():
        for file in files:
            with Image.open(file) as image:
                assert f"{image.width}x{image.height}" == name
    assert "warning" not in capsys.readouterr().err


def test_with_buckets_resuming_equals_never_stopping(run: Callable[..., object], shapes: None) -> None:
    settings = SETTINGS | {
        "data__batch_size": 2,
        "trainer__max_steps": 6,
        "data__masked_loss": 0.5,
        "checkpoint__every_n_steps": 3,
    }
    run(**settings, name="whole")
    with pytest.raises(SystemExit):
        run("fit", "--trainer.callbacks+=helpers.probes.Stopper", "--trainer.callbacks.at=3", **settings, name="parts")
    run(**settings, name="parts", ckpt_path="last")
    assert_same(left_behind("whole"), left_behind("parts"))


def test_a_state_amid_a_batch_of_another_size_is_refused(
    run: Callable[..., object], complaint: Callable[..., str], shapes: None
) -> None:
    run(**SETTINGS, data__batch_size=3, trainer__max_steps=1, name="parts")
    said = complaint(**SETTINGS, data__batch_size=2, trainer__max_steps=4, name="parts", ckpt_path="last")
    assert "data.batch_size is 2, must divide the 3 samples that the state has seen" in said
