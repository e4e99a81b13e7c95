"""A branch reads the text that the trunk would have read next: every position once, in the order of the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vlm.data.documents import Span
from megatron_vlm.data.packing import PackPlanner
from megatron_vlm.study.points import study_points
from tests.data.planning_cases import CAPACITY, four_sources
from tests.data.test_packing import check_every_position_once
from tests.study.cases import STUDY, study


def _texts(planner: PackPlanner, steps: int) -> list[Span]:
    plans = [planner.plan_step() for _ in range(steps)]
    return [span for plan in plans if plan is not None for pack in plan.packs for span in pack if span.source == 0]


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_branch_goes_on_where_the_trunk_stood(share: float, tmp_path: Path) -> None:
    found = four_sources(tmp_path / "four")
    sources = {name: found[name] for name in ("text", "captions")}
    data = {"tokenizer": "tok", "sources": {"text": "x", "captions": "y"}, "sequence_length": CAPACITY, "window_packs": 8}
    base = {
        "data": data,
        "model": {"vision": {"image_size": 32, "patch_size": 16}},
        "schedule": {"global_batch_size": 2, "lr": 1e-3},
    }
    asked = study(
        tmp_path,
        base={**STUDY["base"], **base},
        images={"measure": "tokens", "sources": {"text": 0.5, "captions": 0.5}},
        axes={"introduction": [share]},
        grids={},
        length={"text_steps": 30, "image_steps": 20},
    )
    (point,) = study_points(asked)
    trunk = PackPlanner(sources, point.trunk)
    before = _texts(trunk, point.introduction)
    state = trunk.state()
    branch = PackPlanner(sources, point.config)
    branch.load(state, before=PackPlanner(sources, point.trunk))
    after = _texts(branch, point.config.total_steps - point.introduction)
    assert after
    check_every_position_once(branch, "text", [*before, *after])
    # and so does the trunk, which reads more of it
    rest = _texts(trunk, point.trunk.total_steps - point.introduction)
    check_every_position_once(trunk, "text", [*before, *rest])
