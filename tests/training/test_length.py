"""Passes over a source as the length of a run: as many as the planner of packs then makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.config.curriculum import StageConfig
from megatron_vlm.config.evaluation import EvaluationConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.packing import PackPlanner
from megatron_vlm.errors import ConfigError
from megatron_vlm.training.length import with_length
from tests.data.planning_cases import CAPACITY, chosen, four_sources, run


def _config(folder: Path, stage: StageConfig, epochs: dict[str, float], **evaluation: Any) -> RunConfig:
    config = run(stage)
    return replace(
        config,
        data=replace(config.data, sources={name: str(folder / name) for name in ("text", "code", "captions", "albums")}),
        schedule=replace(config.schedule, train_steps=None, train_epochs=epochs),
        evaluation=EvaluationConfig(**evaluation),
    )


@pytest.mark.parametrize(
    ("measure", "weights"),
    [
        ("tokens", {"captions": 1.0}),
        ("tokens", {"text": 0.4, "captions": 0.6}),
        ("samples", {"text": 0.4, "captions": 0.6}),
        ("visual_tokens", {"text": 0.8, "captions": 0.2}),
    ],
)
@pytest.mark.parametrize("epochs", [1.0, 3.0])
def test_the_planner_makes_so_many_passes(tmp_path: Path, measure: Any, weights: dict[str, float], epochs: float) -> None:
    sources, stage = four_sources(tmp_path), StageConfig(sources=weights, measure=measure)
    config = with_length(_config(tmp_path, stage, {"captions": epochs}))
    assert config.schedule.train_epochs == {}
    for step in PackPlanner(chosen(sources, stage), config).plans():
        last = step
    # padding ends it before, the last step is a whole one, and documents are not all of the mean length
    step_of_captions = 4 * CAPACITY / sources["captions"].totals().positions
    assert last.report.source_epochs["captions"] == pytest.approx(epochs, rel=0.08, abs=step_of_captions)


def test_evaluation_by_passes(tmp_path: Path) -> None:
    four_sources(tmp_path)
    stage = StageConfig(sources={"captions": 1.0})
    config = with_length(_config(tmp_path, stage, {"captions": 4.0}, interval_epochs=1.0))
    assert config.evaluation.interval == round(config.total_steps / 4)
    assert config.evaluation.interval_epochs == 0
    assert with_length(config) is config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": {"train_steps": 5}}, "one of the three"),
        ({"epochs": {"captions": 1.0, "text": 1.0}}, "name one source"),
        ({"epochs": {"code": 1.0}}, "'code' is no source that the stage reads; it reads text, captions"),
        ({"epochs": {"captions": 0.0}}, "train_epochs.captions: 0 must be above 0"),
        ({"stage": {"ramp": "linear", "sources_from": {"text": 1.0}}}, "one stage of constant weights"),
    ],
)
def test_what_has_no_such_length(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    four_sources(tmp_path)
    stage = StageConfig(sources={"text": 0.5, "captions": 0.5}, **changes.get("stage", {}))
    config = _config(tmp_path, stage, changes.get("epochs", {"captions": 1.0}))
    config = replace(config, schedule=replace(config.schedule, **changes.get("schedule", {})))
    with pytest.raises(ConfigError, match=said):
        with_length(config)


def test_an_interval_of_passes_needs_passes() -> None:
    config = replace(run(StageConfig(sources={"a": 1.0})), evaluation=EvaluationConfig(interval_epochs=1.0))
    with pytest.raises(ConfigError, match="which is not given"):
        with_length(config)
