import pytest

from lightning_dreambooth.evaluation.score import MIN_RANGE, fraction_of_range, score

BASE = {"identity": 0.5, "prompt": 0.4, "class": 0.4}
HALF = {"identity": 0.7, "prompt": 0.35, "class": 0.5}
CEILING, FLOOR = 0.9, 0.3


def test_a_fraction_is_limited_to_its_range() -> None:
    fractions = [fraction_of_range(value, 0.2, 0.6) for value in (0.1, 0.2, 0.3, 0.6, 0.9)]
    assert fractions == pytest.approx([0, 0, 0.25, 1, 1])


def test_the_score_is_the_harmonic_mean_of_its_parts() -> None:
    assert score(HALF, BASE, CEILING, FLOOR) == pytest.approx(
        {"score": 3 / (1 / 0.5 + 1 / 0.5 + 1 / 0.8), "score/identity": 0.5, "score/prompt": 0.5, "score/class": 0.8}
    )


def test_the_score_is_zero_as_soon_as_one_part_is() -> None:
    assert score(HALF | {"class": CEILING}, BASE, CEILING, FLOOR)["score"] == 0
    assert score(BASE, BASE, CEILING, FLOOR)["score"] == 0


def test_a_part_with_a_range_too_short_to_tell_is_left_out() -> None:
    near = BASE | {"prompt": FLOOR + MIN_RANGE / 2, "class": CEILING - MIN_RANGE / 2}
    assert score(HALF, near, CEILING, FLOOR) == pytest.approx({"score": 0.5, "score/identity": 0.5})
    assert score(HALF, BASE | {"identity": CEILING - MIN_RANGE / 2}, CEILING, FLOOR) == {}


def test_what_is_not_measured_has_no_part() -> None:
    assert set(score({"identity": 0.7}, {"identity": 0.5}, CEILING, None)) == {"score", "score/identity"}
