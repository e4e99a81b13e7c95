"""A bf16 run, whose masters and moments are fp32: the same bits in its layout, near in another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.config.run import RunConfig
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import TP2, configuration, steps

# slow on CPUs without instructions for bf16
pytestmark = [pytest.mark.distributed, pytest.mark.slow]

OVERLAPPED = {"overlap_grad_reduce": True, "overlap_param_gather": True}


def _train(config: RunConfig) -> None:
    Run(config).train()


@pytest.mark.parametrize(("source", "target"), [((2, {}), (1, {})), ((2, TP2), (2, {})), ((2, OVERLAPPED), (2, TP2))])
def test_it_goes_on(source: tuple[int, dict[str, Any]], target: tuple[int, Any], data: Path, tmp_path: Path) -> None:
    (ranks, parallel), (other_ranks, other) = ((n, {**layout, "precision": "bf16"}) for n, layout in (source, target))
    fields = {"logging.directory": tmp_path, "checkpoint.save_interval": 2}
    run_ranks(ranks, _train, configuration(data, parallel, **fields))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [r["loss"] for r in records if r["kind"] == "train" and r["step"] in (2, 3)]
    resume = {"checkpoint.resume": tmp_path / "checkpoints" / "step-00000002"}

    def losses(count: int, layout: dict[str, Any], name: str) -> list[float]:
        config = configuration(data, layout, **{**resume, "logging.directory": tmp_path / name})
        return [step["loss"] for step in run_ranks(count, steps, config, 2)[0]]

    assert losses(ranks, parallel, "same") == expected
    assert losses(other_ranks, other, "other") == pytest.approx(expected, abs=1e-3)
