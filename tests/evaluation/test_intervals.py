import numpy as np
import pytest
from scipy import stats

from lightning_dreambooth.evaluation.intervals import bootstrap_interval, student_interval


def test_students_interval_is_that_of_a_t_test() -> None:
    values = [0.2, 0.5, 0.4, 0.1]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert student_interval(values) == pytest.approx((np.mean(values), low, high))


@pytest.mark.parametrize("interval", [student_interval, bootstrap_interval])
def test_a_single_value_has_no_interval(interval) -> None:  # noqa: ANN001
    assert interval([0.3]) == (0.3, None, None)


def test_the_bootstrap_interval_covers_the_true_mean_about_nineteen_times_in_twenty() -> None:
    chance = np.random.default_rng(0)
    intervals = [bootstrap_interval(chance.normal(size=40).tolist()) for _ in range(100)]
    assert 0.88 <= sum(interval.low <= 0 <= interval.high for interval in intervals) / 100 <= 0.99


def test_the_bootstrap_interval_of_equal_values_is_that_value() -> None:
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25, 0.25)
