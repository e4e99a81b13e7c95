"""The stages that docs/curriculum.md gives as examples have a plan, and its table of rates is what the law says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from megatron_vlm.config.checks import plan_problems
from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.optimization import ScheduleConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.training.learning_rate import learning_rate_law

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "curriculum.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: " ".join(block.split())[:60])
def test_examples_have_a_plan(block: str, tmp_path: Path) -> None:
    # a list alone is stages
    raw = yaml.safe_load(block if not block.startswith(" ") else f"curriculum:\n  stages:\n{block}")
    raw.setdefault("schedule", {}).setdefault("train_tokens", 28_000_000_000)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"preset": "vlm_1b", **raw}), encoding="utf-8")
    config = load_config(file=file, overrides=["--data.sources", "{text: a, captions: b, textbooks: c}"])
    assert plan_problems(config) == []


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 7


ROWS = re.findall(r"^\| `(continue|rewarm|restart|constant|cooldown)` \| ([\d.e| -]+) \|$", PAGE, re.MULTILINE)


def test_every_policy_is_in_the_table() -> None:
    assert [policy for policy, _ in ROWS] == ["continue", "rewarm", "restart", "constant", "cooldown"]


@pytest.mark.parametrize(("policy", "row"), ROWS)
def test_rates_of_the_table(policy: str, row: str) -> None:
    second = StageConfig("second", lr_policy=policy, rewarm_steps=10)  # type: ignore[arg-type]
    schedule = ScheduleConfig(lr=1e-3, min_lr=1e-4, warmup_steps=10, train_steps=100)
    law = learning_rate_law(
        RunConfig(schedule=schedule, curriculum=CurriculumConfig((StageConfig("first", until=0.5), second)))
    )
    assert [float(value) for value in row.split("|")] == pytest.approx(
        [law(step) for step in (49, 50, 54, 59, 75, 99)], rel=6e-3
    )
