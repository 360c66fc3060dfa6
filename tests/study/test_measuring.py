import math

import pytest

from lightning_dreambooth.study.figures import Figure, FigureRow
from lightning_dreambooth.study.measuring import decide
from lightning_dreambooth.study.spec import FigureSpec, Hypothesis


def row(steps: int) -> FigureRow:
    return FigureRow("a", {"variant": "a", "prompt": "x", "steps": steps}, {"steps": steps}, range(2))


FIGURE = Figure("one", FigureSpec(), ["a"], [row(2), row(4), row(8)])
FINDING = Hypothesis("more steps, more so", "one", "clip_t", {"steps": 4}, {"steps": 2})


def test_findings_compare_fits_of_the_same_seed() -> None:
    # Fits differ by far more than steps do; only pairs tell the difference.
    cells = {(place, seed): {"clip_t": seed + 0.1 * place} for place in range(3) for seed in (1, 2, 3)}
    verdict = decide(FINDING, FIGURE, cells)
    assert verdict.verdict == "holds"
    assert verdict.difference == pytest.approx((0.1, 0.1, 0.1))
    assert (verdict.more, verdict.less) == pytest.approx((2.1, 2.0))


@pytest.mark.parametrize(
    ("differences", "text"),
    [
        ([0.1, 0.11, 0.12], "holds"),
        ([-0.1, -0.11, -0.12], "does not hold: the opposite does"),
        ([-0.1, 0.0, 0.2], "not told apart: the interval holds 0"),
        ([0.1], "not told apart: one fit each has no interval"),
    ],
)
def test_a_finding_holds_if_its_interval_is_above_zero(differences: list[float], text: str) -> None:
    cells = {(0, seed): {"clip_t": 0.5} for seed in range(len(differences))}
    cells |= {(1, seed): {"clip_t": 0.5 + difference} for seed, difference in enumerate(differences)}
    verdict = decide(FINDING, FIGURE, cells)
    assert verdict.verdict == text
    assert math.isclose(verdict.difference.mean, sum(differences) / len(differences), abs_tol=1e-12)


def test_rows_that_both_sides_hold_are_averaged() -> None:
    both = Hypothesis("", "one", "clip_t", {"variant": "a"}, {"steps": 2})
    verdict = decide(both, FIGURE, {(place, 0): {"clip_t": float(place)} for place in range(3)})
    assert (verdict.more, verdict.less) == (1.0, 0.0)


def test_a_metric_without_an_encoder_has_no_verdict() -> None:
    assert decide(Hypothesis("", "one", "dino", {}, {}), FIGURE, {(0, 0): {"clip_t": 1.0}}) is None
