from collections import Counter
from pathlib import Path

import pytest
import torch

from lightning_dreambooth.data.concepts import TrainingImage
from lightning_dreambooth.data.dataset import (
    PairDataset,
    Pixels,
    concept_cycle,
    training_views,
)
from lightning_dreambooth.data.draws import DrawSource
from lightning_dreambooth.data.loading import ShardedOrder
from lightning_dreambooth.data.training_images import ConceptImages
from lightning_dreambooth.models.tokens import TokenIds


def images(name: str, count: int) -> list[TrainingImage]:
    return [TrainingImage(Path(f"{name}{i}.png"), name) for i in range(count)]


def dataset(*concepts: ConceptImages, **settings: object) -> PairDataset:
    prompts = {name: torch.tensor([i]) for i, name in enumerate(["", "girl", "class girl", "dog", "class dog"])}
    defaults = {
        "prompts": prompts,
        "views": training_views("center", True, 0),
        "resolution_px": 32,
        "caption_dropout": 0.0,
    }
    draw = DrawSource(0, 0.0, (4, 8, 8), 1000)
    return PairDataset(concepts, **defaults | settings, seed=0, draw=draw, cache=None)  # type: ignore[arg-type]


GIRL = ConceptImages(images("girl", 5), images("class girl", 7))
DOG = ConceptImages(images("dog", 3), images("class dog", 4), weight=2, number=1)


def test_every_instance_image_is_seen_equally_often() -> None:
    data = dataset(GIRL)
    seen = Counter(data.images(i)[0].path.name for i in range(5 * 6))
    assert set(seen.values()) == {6}
    assert len(seen) == 5


def test_instance_and_class_images_pair_within_their_concept() -> None:
    data = dataset(GIRL, DOG)
    assert all(pair[1].prompt == f"class {pair[0].prompt}" for pair in map(data.images, range(60)))


def test_concepts_weigh_as_they_say_whatever_their_number_of_images() -> None:
    data = dataset(GIRL, DOG)
    assert Counter(data.images(i)[0].prompt for i in range(30)) == {"girl": 10, "dog": 20}


def test_concepts_are_spread_evenly_over_a_round() -> None:
    assert [c for c, _ in concept_cycle([1, 2])] == [1, 0, 1]
    assert [c for c, _ in concept_cycle([1, 1, 1])] == [0, 1, 2]


def test_pairs_are_new_in_every_round() -> None:
    data = dataset(GIRL)
    rounds = [{data.images(turn * 5 + i) for i in range(5)} for turn in range(3)]
    assert rounds[0] != rounds[1] != rounds[2]


def test_without_class_images_a_sample_has_one_row() -> None:
    assert len(dataset(ConceptImages(GIRL.instances, [])).images(0)) == 1


def test_instance_rows_come_first(here: Path) -> None:
    real = [TrainingImage(path, "girl") for path in sorted(Path("girl").glob("*.png"))]
    data = dataset(ConceptImages(real[:2], [TrainingImage(image.path, "class girl") for image in real[2:]]))
    batch = data.collate([data[i] for i in range(4)])
    assert batch.prompts.values[batch.prompts.places].flatten().tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert len(batch.prompts.values) == 2  # equal prompts are encoded once
    assert batch.images.values.shape == (8, 3, 32, 32)
    assert batch.indices == [0, 1, 2, 3]
    assert batch.halves == ("instance", "class")
    assert (type(batch.images), type(batch.prompts)) == (Pixels, TokenIds)


def test_a_dropped_caption_is_the_empty_prompt(here: Path) -> None:
    real = [TrainingImage(path, "girl") for path in sorted(Path("girl").glob("*.png"))]
    data = dataset(ConceptImages(real, []), caption_dropout=0.3)
    dropped = [data[i].rows[0].prompt == "" for i in range(400)]
    assert abs(sum(dropped) / 400 - 0.3) < 4 * (0.3 * 0.7 / 400) ** 0.5


def test_a_sample_is_the_same_whenever_it_is_read(here: Path) -> None:
    real = [TrainingImage(path, "girl") for path in sorted(Path("girl").glob("*.png"))]
    views = training_views("random", True, 0)
    first, again = (dataset(ConceptImages(real, []), views=views)[7].rows[0].image for _ in range(2))
    assert torch.equal(first, again)
    assert len(set(views)) == 16


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_consume_the_samples_of_one(world_size: int) -> None:
    shards = [list(ShardedOrder(4, 0, 0, 2, rank, world_size)) for rank in range(world_size)]
    per_step = [sorted(i for shard in shards for i in shard[m]) for m in range(4)]
    alone = list(ShardedOrder(4, 0, 0, 2 * world_size, 0, 1))
    assert per_step == alone


def test_a_later_start_continues_the_order() -> None:
    assert list(ShardedOrder(6, 4, 12, 3, 0, 1)) == list(ShardedOrder(6, 0, 0, 3, 0, 1))[4:]
    assert len(ShardedOrder(6, 4, 12, 3, 0, 1)) == 6
