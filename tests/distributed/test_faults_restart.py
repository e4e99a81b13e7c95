"""torchrun starts all ranks again when one was killed or stopped, and the run ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from megatron_vlm.config.loading import to_yaml
from megatron_vlm.training import checkpoint as checkpoints
from tests.distributed.ranks import run_ranks
from tests.distributed.test_faults_replicas import _metrics, _whole_run
from tests.distributed.tiny_run import configuration

pytestmark = [pytest.mark.distributed, pytest.mark.chaos]

STEPS = 24
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def _fields(folder: Path) -> dict[str, Any]:
    timeouts = {"faults.timeout_s": 6, "faults.long_timeout_s": 120}
    return {"schedule.train_steps": STEPS, "checkpoint.save_interval": 3, "logging.directory": folder, **timeouts}


def _final_tensors(folder: Path) -> dict[str, Any]:
    from megatron.core import dist_checkpointing

    state = dist_checkpointing.load_plain_tensors(str(checkpoints.find_checkpoint(folder)))
    return {name: value.numpy() for name, value in state.items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize(("sent", "victim"), [(signal.SIGKILL, 1), (signal.SIGSTOP, 0)])
def test_a_lost_rank_is_started_again_and_the_bits_are_the_same(
    sent: signal.Signals, victim: int, data: Path, tmp_path: Path
) -> None:
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    file = tmp_path / "cut.yaml"
    file.write_text(to_yaml(configuration(data, **_fields(cut))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2"]
    command += ["-m", "megatron_vlm.cli.main", "train", "--config", str(file), "--resume", "auto"]
    log = tmp_path / "log"
    with log.open("w") as output:
        agent = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT})
        try:
            deadline = time.monotonic() + 120
            while not (cut / "checkpoints" / "step-00000006").exists():
                assert time.monotonic() < deadline, log.read_text()
                assert agent.poll() is None, log.read_text()
                time.sleep(0.01)
            ranks = psutil.Process(agent.pid).children()
            (lost,) = [one for one in ranks if one.environ().get("RANK") == str(victim)]
            lost.send_signal(sent)
            code = agent.wait(timeout=200)
        finally:
            for process in psutil.Process(agent.pid).children(recursive=True) if agent.poll() is None else []:
                process.kill()
            agent.kill()
            agent.wait()
    said = log.read_text()
    assert code == 0, said
    assert f"megatron-vlm: rank {victim} (host " in said
    assert f"megatron-vlm: rank {1 - victim} (pid " in said
    assert "resumed from " in said

    assert run_ranks(2, _whole_run, configuration(data, **_fields(whole)))[0][0] == 0
    assert _metrics(cut) == _metrics(whole)
    ours, theirs = (run_ranks(1, _final_tensors, folder)[0] for folder in (cut, whole))
    assert ours.keys() == theirs.keys()
    assert len(ours) > 60
    assert all((ours[name] == value).all() for name, value in theirs.items())
