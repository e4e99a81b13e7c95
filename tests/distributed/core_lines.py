"""A tiny run of two ranks under this Python's megatron-core, for comparison with another's.

    python -m tests.distributed.core_lines write|resume DATA FOLDER

Prints the losses of each layout's steps as JSON, at full precision. `write` makes three steps, saves, and makes two more;
`resume` goes on from what is in FOLDER, and makes these two.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration, one_step, steps

LAYOUTS: dict[str, dict[str, Any]] = {
    "DP2": {},
    "DP2 without distributed optimiser": {"use_distributed_optimizer": False},
    "TP2 with sequence parallelism": {**TP2, "sequence_parallel": True},
    "PP2 x VP2": {**PP2, "virtual_pipeline_model_parallel_size": 2},
}


def _write(config: Any) -> list[dict[str, float]]:
    run = Run(config)
    run._start()
    losses = [one_step(run) for _ in range(3)]
    run._enter_stage()
    run.save()
    return losses + [one_step(run) for _ in range(2)]


def losses(action: str, data: Path, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Of rank 0, by layout and step."""
    found = {}
    for number, (name, layout) in enumerate(LAYOUTS.items()):
        fields = {"logging.directory": folder / str(number), "checkpoint.resume": "none" if action == "write" else "auto"}
        config = configuration(data, layout, **fields)
        job = (_write, config) if action == "write" else (steps, config, 2)
        found[name] = run_ranks(2, *job, timeout=1200)[0]
    return found


if __name__ == "__main__":
    print(json.dumps(losses(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
