import pytest

from lightning_dreambooth.evaluation.score import MIN_RANGE, fraction_of_range, score

BASE = {"identity": 0.5, "prompt": 0.4, "attributes": 0.2, "class": 0.4}
HALF = {"identity": 0.7, "prompt": 0.35, "attributes": 0.05, "class": 0.5}
CEILING, FLOORS = 0.9, {"prompt": 0.3, "attributes": 0.0}


def test_a_fraction_is_limited_to_its_range() -> None:
    fractions = [fraction_of_range(value, 0.2, 0.6) for value in (0.1, 0.2, 0.3, 0.6, 0.9)]
    assert fractions == pytest.approx([0, 0, 0.25, 1, 1])


def test_the_score_is_the_harmonic_mean_of_its_parts() -> None:
    parts = {"score/identity": 0.5, "score/prompt": 0.5, "score/attributes": 0.25, "score/class": 0.8}
    mean = 4 / sum(1 / part for part in parts.values())
    assert score(HALF, BASE, CEILING, FLOORS) == pytest.approx({"score": mean} | parts)


def test_the_score_is_zero_as_soon_as_one_part_is() -> None:
    assert score(HALF | {"class": CEILING}, BASE, CEILING, FLOORS)["score"] == 0
    assert score(BASE, BASE, CEILING, FLOORS)["score"] == 0


def test_a_part_with_a_range_too_short_to_tell_is_left_out() -> None:
    near = BASE | {"prompt": 0.3 + MIN_RANGE / 2, "attributes": 0.0, "class": CEILING - MIN_RANGE / 2}
    assert score(HALF, near, CEILING, FLOORS) == pytest.approx({"score": 0.5, "score/identity": 0.5})
    assert score(HALF, BASE | {"identity": CEILING - MIN_RANGE / 2}, CEILING, FLOORS) == {}


def test_what_is_not_measured_has_no_part() -> None:
    assert set(score({"identity": 0.7}, {"identity": 0.5}, CEILING, {})) == {"score", "score/identity"}
