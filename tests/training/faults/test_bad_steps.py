"""Which steps are bad: against numpy's median on drawn losses, and what a resume must not change."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.config.faults import FaultConfig
from megatron_vlm.training.faults.bad_steps import BadStepDetector, not_finite

SPIKES = FaultConfig(spike_deviations=4.0, spike_rise=0.05, spike_window=8, spike_history=4)
LOSSES = st.floats(0.0, 20.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(bad: float) -> None:
    assert not_finite(1.0, 1.0) is None
    assert not_finite(bad, 1.0) == f"the loss is {bad}"
    assert not_finite(1.0, bad) == f"the gradient norm is {bad}"


@given(st.lists(LOSSES, max_size=30), LOSSES)
def test_a_spike_is_far_above_the_median_of_the_last_good_steps(losses: list[float], loss: float) -> None:
    detector = BadStepDetector(SPIKES)
    for good in losses:
        detector.count_good(good)
    last = np.array(losses[-8:])
    found = detector.judge(loss, 1.0)
    if len(losses) < 4:
        assert found is None
        return
    median = np.median(last)
    bound = median + max(4 * 1.4826 * np.median(np.abs(last - median)), 0.05)
    if abs(loss - bound) > 1e-9:
        assert (found is not None) == (loss > bound)


def test_outliers_below_the_bound_do_not_raise_it_much() -> None:
    """A mean and its deviation would be moved by the 3.4 to a bound of 4.9."""
    detector = BadStepDetector(SPIKES)
    for loss in (2.0, 2.1, 1.9, 2.05, 1.95, 3.4, 2.0):
        detector.count_good(loss)
    assert 2.05 < detector.bound < 2.4


def test_no_spike_is_looked_for_unless_asked() -> None:
    detector = BadStepDetector(FaultConfig(spike_history=2))
    for _ in range(10):
        detector.count_good(1.0)
    assert detector.judge(1e9, 1.0) is None


def test_a_stage_begins_without_history() -> None:
    detector = BadStepDetector(SPIKES)
    detector.enter_stage(0)
    for _ in range(6):
        detector.count_good(2.0)
    detector.enter_stage(0)
    assert detector.judge(9.0, 1.0)
    detector.enter_stage(1)
    assert detector.judge(9.0, 1.0) is None


@given(st.lists(st.tuples(LOSSES, st.booleans()), max_size=40), st.integers(0, 40))
def test_a_resumed_detector_decides_alike(steps: list[tuple[float, bool]], cut: int) -> None:
    """Through JSON, as a checkpoint keeps it."""
    config = FaultConfig(spike_deviations=2.0, spike_window=8, spike_history=2, max_bad_steps=2, bad_step_window=10)
    whole, resumed = BadStepDetector(config), BadStepDetector(config)
    for step, (loss, poisoned) in enumerate(steps):
        if step == cut:
            fresh = BadStepDetector(config)
            fresh.load(json.loads(json.dumps(resumed.state())))
            resumed = fresh
        verdicts = [detector.judge(math.nan if poisoned else loss, 1.0) for detector in (whole, resumed)]
        assert verdicts[0] == verdicts[1]
        for detector in (whole, resumed):
            if verdicts[0] is None:
                detector.count_good(loss)
            else:
                detector.count_bad(step)
        assert whole.too_many(step) == resumed.too_many(step)


@given(st.lists(st.booleans(), max_size=60))
def test_too_many_is_counted_over_the_last_steps(bad: list[bool]) -> None:
    detector = BadStepDetector(FaultConfig(max_bad_steps=3, bad_step_window=7))
    for step, is_bad in enumerate(bad):
        if is_bad:
            detector.count_bad(step)
        assert detector.too_many(step) == (sum(bad[max(0, step - 6) : step + 1]) > 3)


def test_the_state_stays_small() -> None:
    detector = BadStepDetector(FaultConfig(spike_deviations=3.0))
    for step in range(10_000):
        detector.count_good(2.0 + 1 / (3 + step))
        detector.count_bad(step)
    assert len(json.dumps(detector.state())) < 2_000


def test_history_goes_back_and_what_was_bad_is_kept() -> None:
    detector = BadStepDetector(SPIKES)
    detector.count_good(1.0)
    saved = detector.state()
    detector.count_good(2.0)
    detector.count_bad(7)
    detector.load_history(saved)
    assert (detector.losses, detector.bad) == ([1.0], [7])
