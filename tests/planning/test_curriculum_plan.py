"""The plan of a run: nothing lost between its pieces, passes that can be worked out by hand, and what it warns of."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.data import DataConfig
from megatron_vlm.config.optimization import ScheduleConfig
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning.curriculum_plan import CurriculumPlan, plan_curriculum
from megatron_vlm.planning.curriculum_warnings import refusals, warnings
from megatron_vlm.planning.source_shares import SourceShape

SHAPES = {"text": SourceShape(100.0, 0.0, 10_000), "captions": SourceShape(8.0, 0.5, 1_000)}
FREEZE = ("vision", "projector")


def config(*stages: StageConfig, steps: int = 100, batch: int = 4, **curriculum: Any) -> RunConfig:
    return RunConfig(
        data=DataConfig(sources={"text": "a", "captions": "b"}, sequence_length=100),
        curriculum=CurriculumConfig(stages, **curriculum),
        schedule=ScheduleConfig(train_steps=steps, global_batch_size=batch),
    )


def plan_of(chosen: RunConfig, shapes: dict[str, SourceShape] | None = None) -> CurriculumPlan:
    known = SHAPES if shapes is None else shapes
    rows = {segment.shape.picture for segment in chosen.segments}
    return plan_curriculum(chosen, dict.fromkeys(rows, known), lambda step: 1.0 / (step + 1))


TEXT = StageConfig("text", until=0.8, sources={"text": 1.0}, freeze=FREEZE)
IMAGES = StageConfig("images", sources={"text": 0.75, "captions": 0.25}, measure="visual_tokens", freeze=("vision",))


def test_by_hand() -> None:
    """100 steps of 400 positions; a quarter of the last 8,000 is pictures, so half of it is captions."""
    plan = plan_of(config(TEXT, IMAGES))
    text, images = plan.stages
    assert text.source_tokens == pytest.approx({"text": 32_000})
    assert images.source_tokens == pytest.approx({"text": 4_000, "captions": 4_000})
    assert (text.visual_tokens, images.visual_tokens) == (0, pytest.approx(2_000))
    assert plan.source_passes == pytest.approx({"text": 3.6, "captions": 4.0})
    assert images.source_passes == pytest.approx({"text": 0.4, "captions": 4.0})
    assert plan.pictures_enter is not None
    assert (plan.pictures_enter.first_step, plan.pictures_enter.first_token) == (80, 32_000)
    assert text.lr == (1.0, 1.0, pytest.approx(1 / 80))
    assert list(refusals(config(TEXT, IMAGES), plan)) == []


def test_a_straight_ramp_has_the_mean_of_its_ends() -> None:
    """From no pictures to a quarter over half of the stage: 1/8 on average there, 1/4 after."""
    ramped = StageConfig(
        "ramp", sources={"text": 0.75, "captions": 0.25}, measure="visual_tokens", ramp="linear", ramp_share=0.5
    )
    (_, stage) = plan_of(config(TEXT, ramped, steps=1000)).stages
    assert stage.visual_tokens == pytest.approx(80_000 * (0.5 / 8 + 0.5 / 4), rel=1e-3)


@given(
    stages=st.lists(
        st.builds(
            StageConfig,
            until=st.floats(0.05, 1),
            sources=st.fixed_dictionaries({"text": st.floats(0.1, 1), "captions": st.floats(0, 0.4)}),
            measure=st.sampled_from(["tokens", "samples"]),
            ramp=st.sampled_from(["linear", "cosine", "constant"]),
            global_batch_size=st.none() | st.integers(1, 9),
        ),
        max_size=3,
    ),
    limit=st.none() | st.floats(0.01, 5),
    choice=st.sampled_from(["stop", "reweight", "repeat"]),
    steps=st.integers(1, 700),
)
def test_nothing_is_lost_and_limits_hold(stages: list[StageConfig], limit: float | None, choice: Any, steps: int) -> None:
    first = StageConfig("first", until=0.02, sources={"text": 1.0})
    limits = {} if limit is None else {"captions": limit}
    chosen = config(
        first, *stages, StageConfig("last", sources={"text": 1.0}), steps=steps, when_exhausted=choice, max_epochs=limits
    )
    plan = plan_of(chosen)
    at = 0.0
    for piece in plan.pieces:
        assert piece.first_token == pytest.approx(at, abs=1e-3)
        at = piece.first_token + piece.tokens
    if plan.ends_early:
        assert choice == "stop"
        assert [gone.source for gone in plan.exhausted] == ["captions"]
        assert at == pytest.approx(plan.exhausted[-1].token)
    else:
        assert at == pytest.approx(chosen.total_tokens)
    assert sum(stage.tokens for stage in plan.stages) == pytest.approx(at)
    whole, visual = plan.planned_before(chosen.total_tokens)
    for name in plan.sources:
        assert whole[name] == pytest.approx(sum(stage.source_tokens.get(name, 0.0) for stage in plan.stages))
        assert whole[name] == pytest.approx(plan.source_passes.get(name, 0.0) * SHAPES[name].positions)
    assert visual == pytest.approx(whole.get("captions", 0.0) / 2)
    if limit is not None and choice != "repeat":
        assert plan.source_passes.get("captions", 0.0) <= limit + 1e-5


@pytest.mark.parametrize(
    ("choice", "ends", "says"),
    [
        ("stop", True, "the run ends there, with 90.0% of its positions done"),
        ("reweight", False, "the other sources take its share from there on"),
        ("repeat", False, "it is repeated then, 4.0 times in all"),
    ],
)
def test_a_source_that_has_had_its_passes(choice: Any, ends: bool, says: str) -> None:
    """Captions take half of the last 8,000 positions: their 2 passes of 1,000 are over after half of the stage."""
    chosen = config(TEXT, IMAGES, max_epochs={"captions": 2}, when_exhausted=choice)
    plan = plan_of(chosen)
    (gone,) = plan.exhausted
    assert (gone.source, gone.step, gone.token) == ("captions", pytest.approx(90), pytest.approx(36_000))
    assert plan.ends_early is ends
    assert plan.source_passes["captions"] == pytest.approx(4 if choice == "repeat" else 2)
    (line,) = [line for line in warnings(chosen, plan, 5) if line.startswith("captions")]
    assert line.startswith("captions: has had its 2 passes at step ")
    assert says in line


def test_pictures_of_another_size_are_other_passes() -> None:
    """One pass is 1,000 positions where a picture takes 64 tokens, and 500 where it takes 16."""
    small = {"text": SHAPES["text"], "captions": SourceShape(4.0, 0.25, 500)}
    coarse = StageConfig("coarse", until=0.5, sources={"captions": 1.0}, image_pool=2)
    chosen = config(coarse, StageConfig("fine", sources={"captions": 1.0}))
    plan = plan_curriculum(chosen, {PictureRows(64): SHAPES, PictureRows(16): small}, lambda step: 1.0)
    assert [stage.source_passes["captions"] for stage in plan.stages] == pytest.approx([40, 20])
    assert [stage.visual_tokens for stage in plan.stages] == pytest.approx([5_000, 10_000])


def test_a_share_of_pictures_that_cannot_be_had_names_one_that_can() -> None:
    greedy = StageConfig("images", sources={"text": 0.3, "captions": 0.7}, measure="visual_tokens")
    (line,) = refusals(config(TEXT, greedy), plan_of(config(TEXT, greedy)))
    assert line.startswith("stage 'images': 0.7 of all positions cannot be pictures")
    assert line.endswith("at most 0.5 can")
    mended = StageConfig("images", sources={"text": 0.5, "captions": 0.5}, measure="visual_tokens")
    assert list(refusals(config(TEXT, mended), plan_of(config(TEXT, mended)))) == []
    alone = StageConfig("images", sources={"captions": 0.2}, measure="visual_tokens")
    (line,) = refusals(config(TEXT, alone), plan_of(config(TEXT, alone)))
    assert "0.5 of all positions are pictures, not 0.2" in line


def test_the_end_of_a_ramp_is_checked_too() -> None:
    greedy = StageConfig("images", sources={"text": 0.3, "captions": 0.7}, measure="visual_tokens", ramp="cosine")
    (line,) = refusals(config(TEXT, greedy), plan_of(config(TEXT, greedy)))
    assert "0.7" in line


def test_datasets_that_are_missing_leave_a_plan_without_passes() -> None:
    plan = plan_of(config(TEXT, IMAGES), {})
    assert plan.source_passes == {}
    assert [stage.visual_tokens for stage in plan.stages] == [None, None]
    assert [stage.known for stage in plan.stages] == [True, False], "weights of tokens need no dataset"
    assert plan.stages[1].source_tokens == pytest.approx({"text": 6_000, "captions": 2_000})
    assert plan.planned_before(40_000)[1] is None


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        (config(TEXT, IMAGES), "captions: read 4.0 times, more than 3; "),
        (config(StageConfig("a", sources={"text": 1.0}, freeze=FREEZE)), "captions: in data.sources, and no stage reads it"),
        (config(StageConfig("a", until=0.8, sources={"text": 1.0}), IMAGES), "stage 'a': has no pictures; freeze: [vision"),
        (
            config(TEXT, StageConfig("images", sources={"text": 0.1, "captions": 0.1}, freeze=FREEZE)),
            "stage 'images': pictures pass through a projector that no stage has trained",
        ),
    ],
)
def test_warnings(chosen: RunConfig, says: str) -> None:
    assert [line for line in warnings(chosen, plan_of(chosen), 3) if line.startswith(says)]


def test_a_sound_plan_has_no_warning() -> None:
    assert list(warnings(config(TEXT, IMAGES), plan_of(config(TEXT, IMAGES)), 5)) == []


def test_a_ramp_of_batches_that_does_not_end_is_warned_of() -> None:
    schedule = ScheduleConfig(
        train_steps=10, global_batch_size=8, rampup_batch_start=2, rampup_batch_increment=2, rampup_packs=90
    )
    chosen = RunConfig(
        data=DataConfig(sources={"text": "a"}), curriculum=CurriculumConfig((TEXT, IMAGES)), schedule=schedule
    )
    assert any("it ends at a batch of 2" in line for line in warnings(chosen, plan_of(chosen), 1e9))
