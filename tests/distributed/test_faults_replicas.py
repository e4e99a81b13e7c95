"""One flipped bit of one replica ends the run before anything of it is saved; equal runs have equal bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vlm.config.run import RunConfig
from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import TP2, configuration

pytestmark = pytest.mark.distributed

FLIPPED = "language_model.decoder.final_layernorm.weight"


def _flip(config: RunConfig, victim: int) -> tuple[int, int]:
    """Flip the lowest bit of one number on one rank after step 1."""
    run = Run(config)
    make_step = run._one_step

    def step(*args: Any) -> Any:
        ended = make_step(*args)
        if run.topology.rank == victim and run.step == 2:
            with torch.no_grad():
                bits = dict(unwrap(run.engine.chunks[0]).named_parameters())[FLIPPED].view(torch.int32)
                bits[7] ^= 1
        return ended

    run._one_step = step  # type: ignore[method-assign]
    outcome = run.train()
    return outcome.exit_code, outcome.step


@pytest.mark.parametrize(
    ("ranks", "parallel", "said"),
    [
        (2, {}, f"{FLIPPED} differs between ranks 0, 1"),
        (2, {"use_distributed_optimizer": False}, f"{FLIPPED} differs between ranks 0, 1"),
        (4, TP2, f"{FLIPPED} differs between ranks 1, 3"),
        (4, {}, f"{FLIPPED} on rank 1 differs from the other 3 replicas"),
    ],
)
def test_a_flipped_bit_ends_the_run(
    ranks: int, parallel: dict[str, Any], said: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fields: dict[str, Any] = {
        "faults.check_replicas_interval": 2,
        "checkpoint.save_interval": 2,
        "logging.directory": tmp_path,
    }
    fields["curriculum.stages"] = "[{sources: {text: 0.5, captions: 0.5}}]"  # a border would gather the parameters anew
    assert run_ranks(ranks, _flip, configuration(data, parallel, **fields), 1) == [(70, 2)] * ranks
    assert f"data-parallel replicas differ before step 2: {said}. " in capfd.readouterr().out
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def _whole_run(config: RunConfig) -> tuple[int, dict[str, bytes]]:
    run = Run(config)
    code = run.train().exit_code
    named = [(f"{i}.{n}", p) for i, chunk in enumerate(run.engine.chunks) for n, p in chunk.named_parameters()]
    return code, {name: parameter.detach().numpy().tobytes() for name, parameter in named}


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """Everything that is recorded, but for times."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = {"seconds", "data_wait_seconds"}
    return [{k: v for k, v in record.items() if k not in timed} for record in records if record["kind"] != "speed"]


OVERLAPPED = {"overlap_grad_reduce": True, "overlap_param_gather": True}


@pytest.mark.parametrize(
    "parallel", [{}, pytest.param(TP2, marks=pytest.mark.slow), pytest.param(OVERLAPPED, marks=pytest.mark.slow)]
)
def test_a_run_has_the_same_bits_again(parallel: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """With held-out losses, a save on the way, and the replicas compared at every step."""
    fields = {
        "data.validation": f"{{text: '{data / 'text'}'}}",
        "data.validation_documents": 4,
        "logging.eval_interval": 2,
        "checkpoint.save_interval": 2,
        "faults.check_replicas_interval": 1,
    }
    folders = [tmp_path / "one", tmp_path / "two"]
    one, two = (
        run_ranks(2, _whole_run, configuration(data, parallel, **fields, **{"logging.directory": folder}))
        for folder in folders
    )
    assert one == two
    assert all(code == 0 and len(weights) > 60 for code, weights in one)
    assert _metrics(folders[0]) == _metrics(folders[1])
    assert {record["kind"] for record in _metrics(folders[0])} == {"train", "eval"}
