"""How sure a score is: intervals by resampling questions, and whether two models differ on the same questions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
_RESAMPLES = 10_000
_BLOCK = 4_000_000  # resampled values held at once


@dataclass(frozen=True)
class Interval:
    """A mean, and where `level` of resampled means lie."""

    mean: float
    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of b less that of a, over the same questions.

    `interval` is by resampling questions; `p_value` of a two-sided permutation test: how often signs put on the differences
    at random give a mean at least as far from 0. `better` and `worse` count the questions that b does better and worse.
    """

    interval: Interval
    p_value: float
    better: int
    worse: int
    questions: int


def bootstrap_interval(values: Values, level: float = 0.95, seed: int = 0, resamples: int = _RESAMPLES) -> Interval:
    """Percentile bootstrap of the mean (Efron 1979).

    Args:
        values: float64[n], one a question; n at least 1.

    Raises:
        ValueError: no values, or a level that is not between 0 and 1.
    """
    _check(values, level)
    means = np.sort(_resampled_means(values, np.random.default_rng(seed), resamples))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level)


def paired_difference(a: Values, b: Values, level: float = 0.95, seed: int = 0, resamples: int = _RESAMPLES) -> Difference:
    """What `b` scores above `a`; both float64[n], of the same questions in the same order.

    Raises:
        ValueError: none, or not as many of both.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} scores against {len(b)}: they are not of the same questions")
    moved = b - a
    interval = bootstrap_interval(moved, level, seed, resamples)
    rng = np.random.default_rng(seed + 1)
    away, done, block = 0, 0, max(1, _BLOCK // len(moved))
    bar = abs(moved.sum()) * (1 - 1e-12)
    while done < resamples:
        count = min(block, resamples - done)
        signs = rng.integers(0, 2, (count, len(moved)), dtype=np.int8) * 2 - 1
        away += int((np.abs(signs @ moved) >= bar).sum())
        done += count
    # the signs as they are count as one of the draws, so that no p-value is 0 (Phipson and Smyth 2010)
    p_value = (away + 1) / (resamples + 1)
    return Difference(interval, p_value, int((moved > 0).sum()), int((moved < 0).sum()), len(moved))


def _resampled_means(values: Values, rng: np.random.Generator, resamples: int) -> Values:
    block = max(1, _BLOCK // len(values))
    parts = [
        values[rng.integers(0, len(values), (min(block, resamples - done), len(values)))].mean(axis=1)
        for done in range(0, resamples, block)
    ]
    return np.concatenate(parts)


def _check(values: Values, level: float) -> None:
    if not len(values):
        raise ValueError("there are no scores")
    if not 0 < level < 1:
        raise ValueError(f"a level of {level}, but it must be between 0 and 1")
