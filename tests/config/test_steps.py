"""Segments of a run: nothing between them, nothing twice, borders to the step, and ramps that only rise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.data import DataConfig
from megatron_vlm.config.optimization import ScheduleConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape

SIZE = st.none() | st.integers(1, 24)


@st.composite
def stages(draw: Any) -> StageConfig:
    end = draw(st.sampled_from(["until", "until_tokens", "until_steps"]))
    value = draw(
        {"until": st.floats(0.01, 1), "until_tokens": st.integers(1, 60_000), "until_steps": st.integers(1, 400)}[end]
    )
    return StageConfig(**{end: value}, sequence_length=draw(SIZE), global_batch_size=draw(SIZE))


@st.composite
def runs(draw: Any) -> RunConfig:
    length = draw(st.sampled_from(["train_tokens", "train_steps"]))
    schedule = ScheduleConfig(
        global_batch_size=draw(st.integers(1, 16)),
        rampup_batch_start=draw(st.none() | st.integers(1, 16)),
        rampup_batch_increment=draw(st.integers(1, 5)),
        rampup_packs=draw(st.integers(0, 900)),
        **{length: draw(st.integers(1, 400 if length == "train_steps" else 60_000))},
    )
    return RunConfig(
        data=DataConfig(sequence_length=draw(st.integers(1, 16))),
        curriculum=CurriculumConfig((*draw(st.lists(stages(), max_size=3)), StageConfig(name="last"))),
        schedule=schedule,
    )


def walk(config: RunConfig) -> Iterator[tuple[int, int, int, StepShape]]:
    """Step, packs and positions before it, its shape: found one by one from the fields, with no segments."""
    schedule = config.schedule
    step = pack = token = stage = 0
    while True:
        if schedule.train_steps is not None and step >= schedule.train_steps:
            return
        if schedule.train_tokens is not None and token >= schedule.train_tokens:
            return
        while stage < len(config.curriculum.stages) - 1 and _over(config, stage, step, token):
            stage += 1
        chosen = config.curriculum.stages[stage]
        batch = chosen.global_batch_size or schedule.global_batch_size
        start = schedule.rampup_batch_start
        if start is not None and start < batch and pack < schedule.rampup_packs:
            rises = -(-(batch - start) // schedule.rampup_batch_increment)
            batch = min(batch, start + pack * rises // schedule.rampup_packs * schedule.rampup_batch_increment)
        length = chosen.sequence_length or config.data.sequence_length
        yield step, pack, token, StepShape(stage, length, schedule.micro_batch_size, batch, 64, 1, 64)
        step, pack, token = step + 1, pack + batch, token + batch * length


def _over(config: RunConfig, stage: int, step: int, token: int) -> bool:
    chosen, schedule = config.curriculum.stages[stage], config.schedule
    if chosen.until_steps is not None:
        return step >= chosen.until_steps
    if chosen.until_tokens is not None:
        return token >= chosen.until_tokens
    assert chosen.until is not None
    if schedule.train_steps is not None:
        return step >= chosen.until * schedule.train_steps - 1e-9
    assert schedule.train_tokens is not None
    return token >= chosen.until * schedule.train_tokens * (1 - 1e-15) - 1e-9


@given(config=runs())
def test_every_step_is_where_a_walk_from_the_start_comes_to_it(config: RunConfig) -> None:
    steps = 0
    for step, pack, token, shape in walk(config):
        assert (config.packs_before(step), config.tokens_before(step)) == (pack, token)
        assert config.shape_of(step) == shape
        steps += 1
    assert config.total_steps == steps


@given(config=runs())
def test_segments_follow_each_other_and_cover_the_run(config: RunConfig) -> None:
    step = pack = token = stage = 0
    for segment in config.segments:
        assert (segment.first_step, segment.first_pack, segment.first_token) == (step, pack, token)
        assert segment.steps > 0
        assert segment.shape.stage >= stage
        step, stage = segment.end_step, segment.shape.stage
        pack += segment.steps * segment.shape.global_batch_size
        token += segment.steps * segment.tokens_per_step
    assert (step, pack, token) == (config.total_steps, config.total_packs, config.total_tokens)


@given(config=runs())
def test_a_stage_ends_with_the_first_step_that_reaches_its_border(config: RunConfig) -> None:
    ends = config.stage_ends()
    assert ends == tuple(sorted(ends))
    start = 0
    for index, end in enumerate(ends[:-1]):
        if end == start:
            continue  # it has no step
        over = [_over(config, index, step, config.tokens_before(step)) for step in (end - 1, end)]
        assert over[0] is False
        assert over[1] or end == config.total_steps
        start = end
    assert ends[-1] == config.total_steps or ends[-1] == 0


@given(config=runs())
def test_the_batch_only_rises_within_a_stage_and_ends_full(config: RunConfig) -> None:
    full = config.schedule.global_batch_size
    for before, after in zip(config.segments, config.segments[1:], strict=False):
        if before.shape.stage == after.shape.stage:
            assert before.shape.global_batch_size < after.shape.global_batch_size
    for segment in config.segments:
        stage = config.curriculum.stages[segment.shape.stage]
        assert 1 <= segment.shape.global_batch_size <= (stage.global_batch_size or full)
        if segment.first_pack >= config.schedule.rampup_packs:
            assert segment.shape.global_batch_size == (stage.global_batch_size or full)


def test_a_ramp_of_batches_by_hand() -> None:
    """From 4 to 12 by 4 over 24 packs: two rises, so 4 until pack 12, 8 until pack 24, then 12."""
    schedule = ScheduleConfig(
        global_batch_size=12, rampup_batch_start=4, rampup_batch_increment=4, rampup_packs=24, train_steps=10
    )
    config = RunConfig(schedule=schedule)
    assert [config.shape_of(step).global_batch_size for step in range(7)] == [4, 4, 4, 8, 8, 12, 12]
    assert [config.packs_before(step) for step in range(7)] == [0, 4, 8, 12, 20, 28, 40]


def test_a_stage_of_longer_packs_ends_at_its_positions() -> None:
    schedule = ScheduleConfig(global_batch_size=2, train_tokens=1000)
    short, long = StageConfig(until_tokens=400, sequence_length=10), StageConfig(sequence_length=30)
    config = RunConfig(schedule=schedule, curriculum=CurriculumConfig((short, long)))
    assert config.stage_ends() == (20, 30)
    assert (config.tokens_before(20), config.total_tokens, config.total_packs) == (400, 1000, 60)


@given(progress=st.floats(0, 1), share=st.floats(0.05, 1), ramp=st.sampled_from(["linear", "cosine"]))
def test_a_ramp_of_weights_stays_between_its_ends_and_arrives(progress: float, share: float, ramp: Any) -> None:
    first = StageConfig(sources={"text": 30.0, "code": 10.0})
    second = StageConfig(sources={"text": 1.0, "captions": 1.0}, ramp=ramp, ramp_share=share)
    curriculum = CurriculumConfig((first, second))
    weights = curriculum.weights(1, progress)
    if progress >= share:
        assert weights == second.sources
        return
    assert abs(sum(weights.values()) - 1) < 1e-12, "of tokens only ratios matter: both ends are scaled to 1"
    assert 0.5 - 1e-12 <= weights["text"] <= 0.75 + 1e-12
    assert -1e-12 <= weights["captions"] <= 0.5
    assert abs(weights["code"] / 0.25 + weights["captions"] / 0.5 - 1) < 1e-12
    if ramp == "linear":
        assert abs(weights["captions"] - 0.5 * progress / share) < 1e-12
