"""`curriculum show` foresees what the planner of packs then does, step by step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_vlm.config.curriculum import Measure, StageConfig
from megatron_vlm.data.packing import PackPlanner
from megatron_vlm.planning.curriculum_plan import plan_curriculum
from megatron_vlm.training.source_shapes import read_shapes
from tests.data.planning_cases import CAPACITY, chosen, four_sources, run


@pytest.mark.parametrize(
    ("measure", "text", "shown", "packs"),
    [
        ("tokens", {"text": 0.7, "code": 0.3}, {"text": 0.5, "code": 0.2, "captions": 0.2, "albums": 0.1}, 1.0),
        ("samples", {"text": 0.7, "code": 0.3}, {"text": 0.3, "code": 0.2, "captions": 0.4, "albums": 0.1}, 5.0),
        ("visual_tokens", {"text": 0.7, "code": 0.3}, {"text": 0.6, "code": 0.2, "captions": 0.1, "albums": 0.15}, 3.0),
    ],
)
def test_planned_and_packed(
    tmp_path: Path, measure: Measure, text: dict[str, float], shown: dict[str, float], packs: float
) -> None:
    """Text, a ramp to pictures, pictures in packs half as long: no source is further from the plan than `packs` packs.

    By tokens that is the promise of the planner. By samples and visual tokens the table multiplies by the mean document of
    each source, and documents as they come are longer and shorter than that.
    """
    sources = four_sources(tmp_path)
    stages = (
        StageConfig("text", until=0.3, sources=text, measure=measure),
        StageConfig("ramp", until=0.7, sources=shown, measure=measure, ramp="linear"),
        StageConfig("pictures", sources=shown, measure=measure, sequence_length=CAPACITY // 2),
    )
    config = run(*stages, steps=120, batch=4, fill_holes=True)
    config = replace(config, data=replace(config.data, sources={name: str(tmp_path / name) for name in sources}))
    shapes, notes = read_shapes(config, {})
    assert not notes
    plan = plan_curriculum(config, shapes, lambda step: 1.0)
    worst = 0.0
    steps = 0
    for step in PackPlanner(chosen(sources, *stages), config).plans():
        steps += 1
        filled = sum(step.report.source_tokens.values())
        planned, visual = plan.planned_before(float(filled + step.report.padded))
        assert visual is not None
        off = [abs(step.report.source_tokens[name] - tokens) for name, tokens in planned.items()]
        # padding is not foreseen, and is shared out among the sources by it
        off.append(abs(sum(step.report.source_visual.values()) - visual))
        worst = max(worst, max(off) - step.report.padded)
    assert steps == config.total_steps
    assert worst <= packs * CAPACITY
