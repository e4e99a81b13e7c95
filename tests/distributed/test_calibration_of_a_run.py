"""`plan --calibrate` reads what a real run logged, and its factors give that run's seconds back.

On the host the factors are a millionth of a GPU's, and mean nothing but that they were found.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vlm.cli import main as cli
from megatron_vlm.planning.calibration import read_measured
from megatron_vlm.planning.efficiency import read_efficiency
from megatron_vlm.training.loop import train
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def whole_run(config: object) -> int:
    return train(config).exit_code  # type: ignore[arg-type]


def test_factors_of_a_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # an encoder that outweighs the language blocks, so that steps with pictures are longer whatever else the machine does
    encoder = {"model__vision": "{num_layers: 8, hidden_size: 128}"}
    fields = {**encoder, "logging__directory": tmp_path, "schedule__train_steps": 24, "curriculum__stages__0__until": 0.5}
    config = configuration(data, **fields)
    assert run_ranks(1, whole_run, config) == [0]
    measured = read_measured(tmp_path / "metrics.jsonl", config)
    assert [(one.stretch.name, one.stretch.visual_share > 0) for one in measured] == [("text", False), ("images", True)]
    own = tmp_path / "own.json"
    words = ["--calibrate", str(tmp_path / "metrics.jsonl"), "--gpus", "1", "--efficiency", str(own), "--precision", "fp32"]
    assert cli.main(["plan", *words]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    left = [float(row[-1].rstrip("%")) for row in rows if row[-1].endswith("%")]
    assert len(left) == 2
    assert all(abs(error) < 1.0 for error in left), rows
    assert 0 < read_efficiency(own).matrix < 0.01
