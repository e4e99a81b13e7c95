"""Calibration finds the factors by which a run's seconds were made, and refuses what is no run."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.config.loading import load_config
from megatron_vlm.errors import DataError
from megatron_vlm.planning.calibration import calibrate, read_measured
from megatron_vlm.planning.efficiency import Efficiency, efficiency_of, read_efficiency, write_efficiency
from megatron_vlm.planning.estimate import estimate
from megatron_vlm.planning.hardware import HARDWARE
from megatron_vlm.planning.run_stretches import Stretch

H100 = HARDWARE["h100"]
CONFIG = load_config(
    preset="vlm_1b",
    overrides=["--schedule.train_steps", "60", "--schedule.warmup_steps", "2", "--curriculum.stages.0.until", "0.5"],
)
PICTURES = 108


def metrics(folder: Path, efficiency: Efficiency, steps: range) -> Path:
    """What a run with these factors would log, with noise, slow first steps and waits for data."""
    generator = random.Random(0)
    lines = []
    for step in steps:
        stage = CONFIG.stage_of(step)
        pictures = PICTURES * stage
        shape = CONFIG.shape_of(step)
        share = pictures * shape.image_tokens / (shape.global_batch_size * shape.sequence_length)
        frozen = CONFIG.curriculum.stages[stage].freeze
        made = estimate(CONFIG, H100, 64, [Stretch("", shape, 1, share, None, frozen)], 50277, efficiency=efficiency)
        waited = generator.random()
        slow = 5.0 if step in (0, 1, 30) else 0.0
        seconds = made.seconds * (1 + generator.uniform(-0.02, 0.02)) + waited + slow
        record: dict[str, Any] = {"kind": "train", "step": step, "pictures": pictures, "seconds": seconds}
        lines += [json.dumps({**record, "data_wait_seconds": waited}), json.dumps({"kind": "speed", "step": step})]
    path = folder / "metrics.jsonl"
    path.write_text("\n".join(lines) + '\n{"kind": "tra')
    return path


def test_finds_the_factors_of_a_run(tmp_path: Path) -> None:
    own = replace(efficiency_of("h100"), matrix=0.41, vision=0.22)
    measured = read_measured(metrics(tmp_path, own, range(60)), CONFIG)
    found = calibrate(measured, CONFIG, H100, 64, 50277)
    assert found.efficiency.matrix == pytest.approx(0.41, rel=0.02)
    assert found.efficiency.vision == pytest.approx(0.22, rel=0.2)  # pictures are 4 % of these steps
    assert [one.steps for one in found.measured] == [25, 25]
    for one, before, after in zip(found.measured, found.before, found.after, strict=True):
        assert abs(before / one.seconds - 1) > 0.15
        assert after == pytest.approx(one.seconds, rel=0.01)


def test_with_pictures_alone_both_factors_move(tmp_path: Path) -> None:
    slow = replace(efficiency_of("h100"), matrix=0.29, vision=0.25)
    measured = read_measured(metrics(tmp_path, slow, range(30, 60)), CONFIG)
    found = calibrate(measured, CONFIG, H100, 64, 50277)
    assert (found.efficiency.matrix, found.efficiency.vision) == pytest.approx((0.29, 0.25), rel=0.03)


def test_factors_are_kept_in_a_file(tmp_path: Path) -> None:
    own = replace(Efficiency(), matrix=0.123)
    write_efficiency(own, tmp_path / "own.json", "here")
    assert read_efficiency(tmp_path / "own.json") == own
    (tmp_path / "bad.json").write_text("[1]")
    for name in ("bad.json", "missing.json"):
        with pytest.raises(DataError, match="no factors of efficiency in it"):
            read_efficiency(tmp_path / name)


def test_what_is_no_run(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="no line of a training step"):
        read_measured(empty, CONFIG)
    with pytest.raises(DataError, match=r"give the metrics\.jsonl of a run"):
        read_measured(tmp_path / "missing.jsonl", CONFIG)
    long = tmp_path / "long.jsonl"
    long.write_text('{"kind": "train", "step": 60, "pictures": 0, "seconds": 1.0}\n')
    with pytest.raises(DataError, match="step 60 is not in the configuration's run of 60 steps"):
        read_measured(long, CONFIG)
