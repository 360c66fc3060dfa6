"""Means with 95 % intervals."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval; a single value has no interval."""

    mean: float
    low: float | None
    high: float | None


def student_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values, such as one per fit, with Student's interval."""
    from scipy.stats import t as student  # imported here: training does not need scipy

    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values, such as one per prompt, with the percentile interval (Efron 1979)."""
    from scipy.stats import bootstrap

    mean = fmean(values)
    if len(values) < 2:
        return Interval(mean, None, None)
    resampled = bootstrap(
        (list(values),), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=0
    )
    low, high = resampled.confidence_interval
    return Interval(mean, float(low), float(high))
