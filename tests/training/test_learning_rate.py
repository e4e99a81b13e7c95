"""Learning-rate laws at their borders: values that can be worked out by hand, and no jump where one passes to another."""

from __future__ import annotations

import math
from typing import Any

import pytest

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.optimization import ScheduleConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.training.learning_rate import learning_rate_law

PEAK, LOW, WARMUP, TOTAL = 1.0, 0.1, 10, 110


def run(*stages: StageConfig, **schedule: Any) -> RunConfig:
    given = {"lr": PEAK, "min_lr": LOW, "warmup_steps": WARMUP, "train_steps": TOTAL, **schedule}
    return RunConfig(schedule=ScheduleConfig(**given), curriculum=CurriculumConfig(stages or (StageConfig(),)))


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd", "constant"])
def test_warm_up_is_a_straight_line_to_the_peak(decay: str) -> None:
    law = learning_rate_law(run(decay=decay))
    assert [law(step) for step in range(WARMUP)] == pytest.approx([PEAK * (step + 1) / WARMUP for step in range(WARMUP)])
    assert law(WARMUP) == PEAK


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert learning_rate_law(run(warmup_steps=0))(0) == PEAK


@pytest.mark.parametrize(
    ("decay", "quarter", "half", "three_quarters", "end"),
    [
        ("cosine", LOW + 0.9 * (1 + math.sqrt(0.5)) / 2, 0.55, LOW + 0.9 * (1 - math.sqrt(0.5)) / 2, LOW),
        ("linear", 0.775, 0.55, 0.325, LOW),
        ("wsd", PEAK, PEAK, PEAK, LOW),
        ("constant", PEAK, PEAK, PEAK, PEAK),
    ],
)
def test_decay_by_quarters(decay: str, quarter: float, half: float, three_quarters: float, end: float) -> None:
    law = learning_rate_law(run(decay=decay))
    values = [law(WARMUP + part) for part in (25, 50, 75, 100, 1000)]
    assert values == pytest.approx([quarter, half, three_quarters, end, end])


def test_wsd_falls_over_its_last_share() -> None:
    law = learning_rate_law(run(decay="wsd", wsd_decay_share=0.4))
    assert [law(step) for step in (69, 70, 90, 110)] == pytest.approx([PEAK, PEAK, 0.55, LOW])
    assert law(71) < PEAK


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd"])
def test_it_never_rises_after_the_warm_up(decay: str) -> None:
    law = learning_rate_law(run(decay=decay))
    values = [law(step) for step in range(WARMUP, TOTAL)]
    assert values == sorted(values, reverse=True)
    assert all(LOW <= value <= PEAK for value in values)
    # the last step is one short of the minimum
    assert values[-1] - LOW < 2 * (PEAK - LOW) / (TOTAL - WARMUP) / (0.2 if decay == "wsd" else 1)


def test_continue_is_the_runs_own_law() -> None:
    alone = learning_rate_law(run(decay="cosine"))
    staged = learning_rate_law(run(StageConfig(until=0.5), StageConfig(until=0.8), StageConfig(), decay="cosine"))
    assert [staged(step) for step in range(TOTAL)] == [alone(step) for step in range(TOTAL)]


def test_rewarm_rises_from_where_the_law_stands_and_decays_to_the_end() -> None:
    stage = StageConfig(lr_policy="rewarm", rewarm_steps=5, rewarm_lr=2.0)
    law = learning_rate_law(run(StageConfig(until_tokens=55 * 8 * 2048), stage, decay="linear"))
    base = learning_rate_law(run(decay="linear"))
    before = law(54)
    assert before == base(54)
    rise = [law(step) for step in range(55, 60)]
    assert rise == pytest.approx([before + (2.0 - before) * part / 5 for part in range(1, 6)])
    assert law(60) == 2.0
    assert law(85) == pytest.approx((2.0 + LOW) / 2), "half-way from the new peak to the end of the run"
    assert law(TOTAL) == pytest.approx(LOW)


def test_rewarm_goes_to_the_runs_peak_unless_told() -> None:
    law = learning_rate_law(run(StageConfig(until=0.5), StageConfig(lr_policy="rewarm", rewarm_steps=1), decay="cosine"))
    assert law(55) == PEAK


def test_a_run_may_begin_with_rewarm() -> None:
    law = learning_rate_law(run(StageConfig(lr_policy="rewarm", rewarm_steps=4), warmup_steps=0))
    assert [law(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_cooldown_reaches_the_minimum_at_the_stages_end_and_stays() -> None:
    stages = (StageConfig(until=0.5), StageConfig(until=0.6, lr_policy="cooldown"), StageConfig())
    law = learning_rate_law(run(*stages, decay="constant"))
    assert law(54) == PEAK
    assert [law(step) for step in range(55, 66)] == pytest.approx([PEAK - 0.9 * part / 11 for part in range(1, 12)])
    assert law(65) == pytest.approx(LOW)
    assert [law(step) for step in (66, 90, TOTAL - 1)] == pytest.approx([LOW] * 3)


def test_rewarm_after_a_cooldown_starts_at_the_minimum() -> None:
    stages = (
        StageConfig(until=0.5, lr_policy="continue"),
        StageConfig(until=0.6, lr_policy="cooldown"),
        StageConfig(lr_policy="rewarm", rewarm_steps=9, rewarm_lr=PEAK),
    )
    law = learning_rate_law(run(*stages, decay="constant"))
    assert law(66) == pytest.approx(LOW + 0.1)
    assert law(74) == pytest.approx(PEAK)


@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd", "constant"])
@pytest.mark.parametrize("policy", ["continue", "rewarm", "cooldown"])
def test_no_jump_at_any_border(decay: str, policy: Any) -> None:
    """The steepest line is the warm-up's, 0.1 a step; next comes the fall of a rewarmed wsd, 0.9 over 0.2 * 46 steps."""
    second = StageConfig(until=0.7, lr_policy=policy, rewarm_steps=20)
    law = learning_rate_law(run(StageConfig(until=0.4), second, StageConfig(), decay=decay))
    steps = [abs(law(step + 1) - law(step)) for step in range(TOTAL - 1)]
    assert max(steps) <= PEAK / WARMUP + 1e-12


def test_it_is_a_pure_function() -> None:
    config = run(StageConfig(until=0.4), StageConfig(lr_policy="rewarm", rewarm_steps=3), decay="cosine")
    law = learning_rate_law(config)
    forward = [law(step) for step in range(TOTAL)]
    assert [law(step) for step in reversed(range(TOTAL))] == forward[::-1]
    assert [learning_rate_law(config)(step) for step in (90, 3, 44)] == [forward[90], forward[3], forward[44]]
