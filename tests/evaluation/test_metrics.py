import itertools

import numpy as np
import pytest
import torch
from torchmetrics.functional import pairwise_cosine_similarity

from lightning_dreambooth.evaluation import metrics


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(7, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def others() -> torch.Tensor:
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


def test_similarity_is_the_mean_pairwise_cosine_of_torchmetrics(rows: torch.Tensor, others: torch.Tensor) -> None:
    expected = pairwise_cosine_similarity(rows, others).mean().item()
    assert metrics.similarity(rows, others) == pytest.approx(expected, abs=1e-6)


def test_prompt_similarity_is_the_mean_of_numpys_row_by_row_cosines(rows: torch.Tensor) -> None:
    texts = rows.roll(1, 0) + 0.5 * rows
    expected = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(rows.numpy(), texts.numpy())]  # noqa: B905
    assert metrics.prompt_similarity(rows, texts) == pytest.approx(np.mean(expected), abs=1e-6)


def test_the_ceiling_excludes_pairs_of_an_image_with_itself(rows: torch.Tensor) -> None:
    pairs = [torch.cosine_similarity(rows[i], rows[j], dim=0).item() for i, j in itertools.combinations(range(7), 2)]
    assert metrics.self_similarity(rows) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_equal_images_reach_every_ceiling() -> None:
    same = torch.ones(4, 3) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    assert metrics.similarity(same, same[:2]) == pytest.approx(1)
    assert metrics.self_similarity(same) == pytest.approx(1)
    assert metrics.nearest(same, same) == pytest.approx(1)
    assert metrics.diversity([same, same]) == pytest.approx(0)
    assert metrics.drift(same, same) == pytest.approx(0)


def test_an_identical_set_is_nearest_to_itself_and_its_other_images_are_not(rows: torch.Tensor) -> None:
    assert metrics.nearest(rows, rows) == pytest.approx(1)
    assert metrics.nearest_other(rows) < 0.95


def test_order_does_not_matter(rows: torch.Tensor, others: torch.Tensor) -> None:
    shuffled = rows[torch.randperm(7, generator=torch.Generator().manual_seed(2))]
    for metric in (metrics.similarity, metrics.nearest):
        assert metric(shuffled, others.flip(0)) == pytest.approx(metric(rows, others), abs=1e-9)
    assert metrics.self_similarity(shuffled) == pytest.approx(metrics.self_similarity(rows), abs=1e-9)


def test_the_length_of_embeddings_does_not_matter(rows: torch.Tensor, others: torch.Tensor) -> None:
    longer = rows * torch.linspace(0.1, 10, 7)[:, None]
    assert metrics.similarity(longer, others) == pytest.approx(metrics.similarity(rows, others), abs=1e-6)


def test_diversity_compares_images_of_one_group_only() -> None:
    east, north = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 1.0]] * 2)
    assert metrics.diversity([east, north]) == pytest.approx(0)
    assert metrics.diversity([torch.cat([east[:1], north[:1]])]) == pytest.approx(1)


def test_what_cannot_be_compared_is_refused(rows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="no embeddings"):
        metrics.similarity(rows, rows[:0])
    with pytest.raises(ValueError, match="not finite"):
        metrics.similarity(rows, torch.full((1, 12), float("nan")))
    with pytest.raises(ValueError, match="at least 2"):
        metrics.self_similarity(rows[:1])
    with pytest.raises(ValueError, match="at least 2"):
        metrics.nearest_other(rows[:1])


def test_gathered_images_come_in_the_order_of_their_numbers() -> None:
    gathered = metrics.GatheredImages()
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2)
    gathered.update(torch.tensor([3, 4]), images[3:])
    gathered.update(torch.tensor([], dtype=torch.long), images[:0])
    gathered.update(torch.tensor([1, 0, 2]), images[[1, 0, 2]])
    assert torch.equal(gathered.compute(), images)
