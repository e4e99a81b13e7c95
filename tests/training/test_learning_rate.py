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


def test_constant_holds_the_rate_at_which_the_stage_begins() -> None:
    stages = (StageConfig(until=0.5), StageConfig(until=0.7, lr_policy="constant"), StageConfig())
    law, base = learning_rate_law(run(*stages, decay="linear")), learning_rate_law(run(decay="linear"))
    assert [law(step) for step in range(56)] == [base(step) for step in range(56)]
    # and a stage that goes on goes on along it
    assert {law(step) for step in range(55, TOTAL)} == {base(55)}


def test_constant_lets_the_runs_warm_up_finish() -> None:
    law = learning_rate_law(run(StageConfig(until=0.5, lr_policy="constant"), StageConfig(lr_policy="cooldown")))
    assert [law(step) for step in range(WARMUP)] == pytest.approx([PEAK * (step + 1) / WARMUP for step in range(WARMUP)])
    assert {law(step) for step in range(WARMUP, 55)} == {PEAK}
    assert law(55) < PEAK


def test_restart_is_a_whole_run_in_one_stage() -> None:
    """Its values are those of a run as long as the stage, with the stage's peak, minimum and decay."""
    stage = StageConfig(until=0.9, lr_policy="restart", rewarm_steps=4, rewarm_lr=0.5, min_lr=0.05, lr_decay="cosine")
    law = learning_rate_law(run(StageConfig(until=0.4), stage, StageConfig(), decay="linear"))
    alone = learning_rate_law(run(lr=0.5, min_lr=0.05, warmup_steps=4, train_steps=55, decay="cosine"))
    assert [law(step) for step in range(44, 99)] == [alone(step) for step in range(55)]
    assert law(99) == law(TOTAL - 1) == pytest.approx(0.05), "a stage that goes on stays at the restart's minimum"


def test_a_stage_may_have_its_own_minimum_and_decay() -> None:
    cool = StageConfig(lr_policy="cooldown", min_lr=0.0, lr_decay="cosine")
    law = learning_rate_law(run(StageConfig(until=0.5), cool, decay="constant"))
    expected = [(1 + math.cos(math.pi * part / 55)) / 2 for part in range(1, 56)]
    assert [law(step) for step in range(55, TOTAL)] == pytest.approx(expected)
    warm = StageConfig(lr_policy="rewarm", rewarm_steps=5, min_lr=0.5, lr_decay="linear")
    assert learning_rate_law(run(StageConfig(until=0.5), warm, decay="constant"))(TOTAL) == 0.5


def test_the_decay_goes_by_positions_where_steps_are_unlike() -> None:
    """Half of the positions are done after two thirds of the steps: there the line is half-way down."""
    config = run(
        StageConfig(until_steps=80),
        StageConfig(global_batch_size=16),
        decay="linear",
        global_batch_size=8,
        train_steps=120,
        warmup_steps=0,
    )
    law = learning_rate_law(config)
    assert law(80) == pytest.approx((PEAK + LOW) / 2)
    assert law(40) == pytest.approx(PEAK - 0.9 / 4)
    assert law(100) == pytest.approx(LOW + 0.9 / 4)


@pytest.mark.parametrize("policy", ["rewarm", "restart", "constant", "continue"])
@pytest.mark.parametrize("decay", ["cosine", "linear", "wsd"])
def test_equal_positions_have_equal_rates_whatever_the_batch(policy: Any, decay: str) -> None:
    """A batch half as large and twice the steps: the rate after as many positions is the same."""
    rates = []
    for batch in (8, 4):
        per, steps = 8 // batch, 100 * (8 // batch)
        warm = 10 * per if policy in ("rewarm", "restart") else 0
        stages = (StageConfig(until=0.5), StageConfig(lr_policy=policy, rewarm_steps=warm))
        law = learning_rate_law(run(*stages, decay=decay, train_steps=steps, global_batch_size=batch, warmup_steps=0))
        after = 60 if warm else 51
        rates.append([law(step * per) for step in (*range(50), *range(after, 100))])
    assert rates[0] == pytest.approx(rates[1])
