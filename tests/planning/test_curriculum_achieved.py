"""A run's metrics beside its plan: both forms of records say the same, and differences can be worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.data import DataConfig
from megatron_vlm.config.optimization import ScheduleConfig
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.config.run import RunConfig
from megatron_vlm.planning.curriculum_achieved import differences, read_achieved
from megatron_vlm.planning.curriculum_plan import plan_curriculum
from megatron_vlm.planning.source_shares import SourceShape

SHAPES = {"text": SourceShape(100.0, 0.0, 10_000), "captions": SourceShape(8.0, 0.5, 1_000)}
CONFIG = RunConfig(
    data=DataConfig(sources={"text": "a", "captions": "b"}, sequence_length=100),
    curriculum=CurriculumConfig(
        (
            StageConfig("text", until=0.5, sources={"text": 1.0}),
            StageConfig("images", sources={"text": 0.75, "captions": 0.25}, measure="visual_tokens"),
        )
    ),
    schedule=ScheduleConfig(train_steps=4, global_batch_size=4),
)
#: after each step, from the start of the run: text, captions, pictures
COUNTS = [(400, 0, 0), (796, 0, 0), (996, 190, 100), (1196, 390, 196)]


def old_records() -> list[dict[str, Any]]:
    """As runs wrote them that counted from the start of each stage."""
    records: list[dict[str, Any]] = [{"kind": "eval", "step": 0, "losses": {}}]
    for step, (text, captions, visual) in enumerate(COUNTS):
        stage = "text" if step < 2 else "images"
        own = {"text": text} if step < 2 else {"text": text - 796, "captions": captions}
        share = visual / sum(own.values())
        records.append(
            {"kind": "train", "step": step, "stage": stage, "lr": 0.1, "source_tokens": own, "achieved_visual_share": share}
        )
    return records


def new_records() -> list[dict[str, Any]]:
    records = []
    for step, (text, captions, visual) in enumerate(COUNTS):
        half = (text + captions - 796) / 2
        records.append(
            {
                "kind": "train",
                "step": step,
                "stage": "text" if step < 2 else "images",
                "lr": 0.1,
                "tokens": 400 * (step + 1),
                "source_tokens": {"text": text, "captions": captions},
                "source_visual": {"captions": visual},
                "source_epochs": {"text": text / 10_000, "captions": captions / 1_000},
                "planned_tokens": {"text": 796 + half, "captions": half} if step > 1 else {"text": text},
            }
        )
    return records


def test_both_forms_of_records_say_the_same() -> None:
    old, new = read_achieved(old_records(), CONFIG), read_achieved(new_records(), CONFIG)
    for one, other, (text, captions, visual) in zip(old.moments, new.moments, COUNTS, strict=True):
        assert (one.step, one.token, one.stage) == (other.step, other.token, other.stage)
        assert one.source_tokens["text"] == other.source_tokens["text"] == text
        assert one.source_tokens.get("captions", 0) == other.source_tokens["captions"] == captions
        assert one.visual == pytest.approx(other.visual) == pytest.approx(visual)
    assert [moment.token for moment in old.moments] == [400, 800, 1200, 1600]
    assert new.source_epochs == {"text": 0.1196, "captions": 0.39}
    assert old.source_epochs == {}


@pytest.mark.parametrize("records", [old_records(), new_records()], ids=["old", "new"])
def test_differences_by_hand(records: list[dict[str, Any]]) -> None:
    """790 positions were filled in the second stage: half should be captions, and a quarter pictures."""
    plan = plan_curriculum(CONFIG, {PictureRows(64): SHAPES}, lambda step: 0.1)
    found = {(one.stage, one.source): one for one in differences(plan, read_achieved(records, CONFIG))}
    assert set(found) == {("text", "text"), ("text", None), ("images", "text"), ("images", "captions"), ("images", None)}
    assert (found["text", "text"].planned, found["text", "text"].achieved) == (1, 1)
    captions, pictures = found["images", "captions"], found["images", None]
    assert (captions.planned, captions.achieved) == (pytest.approx(0.5), pytest.approx(390 / 790))
    assert captions.tokens == pytest.approx(-5)
    assert (pictures.planned, pictures.achieved) == (pytest.approx(0.25), pytest.approx(196 / 790))


def test_a_run_that_is_going_on_is_compared_up_to_its_last_step() -> None:
    plan = plan_curriculum(CONFIG, {PictureRows(64): SHAPES}, lambda step: 0.1)
    found = differences(plan, read_achieved(new_records()[:3], CONFIG))
    assert [one.achieved for one in found if one.source == "captions"] == [pytest.approx(190 / 390)]


def test_records_that_say_nothing_of_sources_are_passed_over() -> None:
    assert read_achieved([{"kind": "train", "step": 0, "stage": "a"}, {"kind": "speed", "step": 1}], CONFIG).moments == []
    assert differences(plan_curriculum(CONFIG, {PictureRows(64): SHAPES}, lambda step: 0.1), read_achieved([], CONFIG)) == []
