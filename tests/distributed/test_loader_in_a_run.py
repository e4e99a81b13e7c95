"""A run is the same to the bit whether workers make its micro-batches or the ranks do, and goes on after a checkpoint from
the step that was trained, not from the one that was planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, configuration, parameters

pytestmark = pytest.mark.distributed


def _whole(config: Any) -> dict[str, Any]:
    run = Run(config)
    run.train()
    return parameters(run)


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("layout", [None, PP2], ids=["dp2", "pp2"])
def test_workers_change_nothing_and_neither_does_a_resumed_run(data: Path, tmp_path: Path, layout: Any) -> None:
    def config(name: str, workers: int, **fields: Any) -> Any:
        settings = {"loader__workers": workers, "logging__directory": str(tmp_path / name), **fields}
        return configuration(data, layout, **settings)

    alone = run_ranks(2, _whole, config("alone", 0))
    ahead = run_ranks(2, _whole, config("ahead", 2, checkpoint__save_interval=3, loader__prefetch_steps=3))
    last = sorted((tmp_path / "ahead" / "checkpoints").glob("step*"))
    assert len(last) >= 2
    (tmp_path / "again").mkdir()
    again = run_ranks(2, _whole, config("again", 1, checkpoint__resume=str(last[0])))
    for others in (ahead, again):
        for one, other in zip(alone, others, strict=True):
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert _metrics(tmp_path / "alone") == _metrics(tmp_path / "ahead")
    resumed = _metrics(tmp_path / "again")
    assert resumed == _metrics(tmp_path / "alone")[-len(resumed) :]
    assert 1 <= len(resumed) < 5
