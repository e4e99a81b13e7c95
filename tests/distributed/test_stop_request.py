"""A run that is asked to stop saves, says so by its exit code, and goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vlm.config.loading import to_yaml
from megatron_vlm.config.run import RunConfig
from megatron_vlm.training import checkpoint as checkpoints
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, configuration

pytestmark = pytest.mark.distributed

STEPS = 24


def _configuration(folder: Path, data: Path) -> RunConfig:
    return configuration(data, **{"schedule.train_steps": STEPS, "logging.directory": folder})


def _start(folder: Path, data: Path, *more: str) -> subprocess.Popen[str]:
    file = folder.with_suffix(".yaml")
    file.write_text(to_yaml(_configuration(folder, data)))
    command = [sys.executable, "-m", "megatron_vlm.cli.main", "train", "--config", str(file), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment)


def _finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, output


def _steps_recorded(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if record["kind"] == "train"]


def _train(config: RunConfig) -> None:
    assert Run(config).train().exit_code == 0


def _final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from megatron.core import dist_checkpointing

    state = dist_checkpointing.load_plain_tensors(str(checkpoints.find_checkpoint(folder)))
    return {name: value.numpy() for name, value in state.items() if isinstance(value, torch.Tensor)}


def test_sigterm_then_resume_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = _start(cut, data)
    deadline = time.monotonic() + 100
    while len(_steps_recorded(cut)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, output = _finish(process)
    assert code == 75, output
    stopped = checkpoints.read_run_file(checkpoints.find_checkpoint(cut))["step"]
    assert 2 <= stopped < STEPS
    assert f"saved at step {stopped}" in output

    code, output = _finish(_start(cut, data, "--resume", "auto"))
    assert code == 0, output
    assert f"at step {stopped}" in output
    run_ranks(1, _train, _configuration(whole, data))

    seen = [(record["step"], record["loss"], record["grad_norm"]) for record in _steps_recorded(cut)]
    assert seen == [(record["step"], record["loss"], record["grad_norm"]) for record in _steps_recorded(whole)]
    ours, theirs = (run_ranks(1, _final_tensors, folder)[0] for folder in (cut, whole))
    assert ours.keys() == theirs.keys()
    assert len(ours) > 60
    assert all((ours[name] == value).all() for name, value in theirs.items())


def _signalled_on_the_last_rank(config: RunConfig) -> tuple[int, int]:
    run = Run(config)
    make_step = run._one_step

    def step(*args: Any) -> None:
        if run.step == 2 and run.topology.rank == run.topology.world_size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        make_step(*args)

    run._one_step = step  # type: ignore[method-assign]
    outcome = run.train()
    return outcome.exit_code, outcome.step


def test_a_signal_to_one_rank_stops_all(data: Path, tmp_path: Path) -> None:
    config = configuration(data, PP2, **{"logging.directory": tmp_path})
    assert run_ranks(2, _signalled_on_the_last_rank, config) == [(75, 3)] * 2
    assert checkpoints.find_checkpoint(tmp_path).name == "step-00000003"
