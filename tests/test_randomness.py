from collections import Counter

import pytest
import torch

from lightning_dreambooth import randomness


def test_a_draw_depends_on_nothing_but_seed_purpose_and_index() -> None:
    alone = randomness.normal(1, "noise", [7], (4, 2))
    torch.rand(100)
    among = randomness.normal(1, "noise", [3, 7, 5], (4, 2))
    assert torch.equal(alone[0], among[1])


@pytest.mark.parametrize("other", [(2, "noise", [7]), (1, "posterior", [7]), (1, "noise", [8])])
def test_another_seed_purpose_or_index_is_another_draw(other: tuple[int, str, list[int]]) -> None:
    assert not torch.equal(randomness.normal(1, "noise", [7], (4,)), randomness.normal(*other, (4,)))


def test_draws_of_many_indices_are_standard_normal_and_uncorrelated() -> None:
    drawn = randomness.normal(0, "noise", range(2000), (8,)).double()
    assert drawn.mean().abs() < 4 / 16000**0.5
    torch.testing.assert_close(torch.cov(drawn.T), torch.eye(8).double(), atol=0.12, rtol=0)
    neighbours = torch.corrcoef(torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()]))[0, 1]
    assert neighbours.abs() < 4 / 16000**0.5


def test_integers_cover_the_range_and_no_more() -> None:
    assert set(randomness.integers(0, "timestep", range(300), 10).tolist()) == set(range(10))


def test_every_round_visits_everything_once_in_an_order_of_its_own() -> None:
    rounds = [[randomness.visit(0, "instance 0", turn * 9 + i, 9) for i in range(9)] for turn in range(4)]
    assert all(sorted(order) == list(range(9)) for order in rounds)
    assert len({tuple(order) for order in rounds}) == 4


def test_chance_is_as_frequent_as_its_probability() -> None:
    counts = Counter(randomness.chance(0, "dropout", i, 0.2) for i in range(2000))
    assert abs(counts[True] / 2000 - 0.2) < 4 * (0.2 * 0.8 / 2000) ** 0.5
    assert not any(randomness.chance(0, "dropout", i, 0.0) for i in range(100))
