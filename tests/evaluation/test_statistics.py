"""Intervals that hold as often as they say, and a paired test against all signs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from megatron_vlm.evaluation.statistics import bootstrap_interval, paired_difference


def test_an_interval_holds_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for run in range(300):
        values = (rng.random(200) < 0.3).astype(np.float64)
        found = bootstrap_interval(values, seed=run, resamples=500)
        held += found.low <= 0.3 <= found.high
    assert 0.90 <= held / 300 <= 0.98


def test_an_interval_of_many_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.2, 2000)
    found = bootstrap_interval(values)
    error = values.std(ddof=1) / np.sqrt(2000)
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(2).random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values).low != bootstrap_interval(values, seed=1).low


def test_the_p_value_is_the_share_of_signs_that_go_as_far() -> None:
    a = np.array([0.0, 1, 0, 0, 1, 0, 0, 1])
    b = np.array([1.0, 1, 1, 0, 1, 1, 0, 0])
    moved = b - a
    sums = [abs(np.dot(signs, moved)) for signs in itertools.product((-1, 1), repeat=len(moved))]
    exact = np.mean([total >= abs(moved.sum()) for total in sums])
    found = paired_difference(a, b)
    assert found.p_value == pytest.approx(exact, abs=0.02)
    assert (found.better, found.worse, found.questions) == (3, 1, 8)
    assert found.interval.mean == pytest.approx(0.25)


def test_no_difference_has_a_p_value_of_one() -> None:
    values = np.random.default_rng(3).random(30)
    assert paired_difference(values, values).p_value == 1


def test_a_clear_difference() -> None:
    rng = np.random.default_rng(4)
    a = rng.random(300)
    found = paired_difference(a, a + 0.1 + rng.normal(0, 0.1, 300))
    assert found.p_value < 0.001
    assert 0.08 < found.interval.low < 0.1 < found.interval.high < 0.12


def test_what_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no scores"):
        bootstrap_interval(np.array([]))
    with pytest.raises(ValueError, match="2 scores against 1"):
        paired_difference(np.zeros(2), np.zeros(1))
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval(np.zeros(2), level=95)
