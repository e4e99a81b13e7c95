"""Runs that are killed at any instant end with the bits of a run that was left alone; in another layout with its batches."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_vlm.config.run import RunConfig
from megatron_vlm.training.loop import Run
from tests.distributed.tiny_run import PP2, TP2, configuration, parameters

STEPS, KILLS = 40, 20
#: what a record may have that is of the clock and not of the run
CLOCK = ("seconds", "data_wait_seconds")


def _rank(rank: int, world_size: int, store: str, config: RunConfig, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=timedelta(seconds=20)
        )
        run = Run(config)
        code = run.train().exit_code
        np.savez(folder / f"rank{rank}.npz", **parameters(run))
    except BaseException as error:
        print(f"rank {rank}: {error!r}", flush=True)
    os._exit(code)


class Ranks:
    """Ranks of one attempt, in real processes."""

    def __init__(self, world_size: int, config: RunConfig, folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        self._store = tempfile.TemporaryDirectory()
        store = str(Path(self._store.name) / "store")
        self.processes: list[Any] = [
            context.Process(target=_rank, args=(rank, world_size, store, config, folder)) for rank in range(world_size)
        ]
        for process in self.processes:
            process.start()

    def running(self) -> bool:
        return all(process.exitcode is None for process in self.processes)

    def end(self, within: float) -> list[int | None]:
        """Exit codes, None where a rank had to be killed because it did not end by itself."""
        until = time.monotonic() + within
        codes: list[int | None] = []
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
            codes.append(process.exitcode)
            process.kill()
            process.join()
        self._store.cleanup()
        return codes


def _records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in CLOCK} for r in records if r["kind"] in ("train", "eval")]


def _config(data: Path, folder: Path, **fields: Any) -> RunConfig:
    folder.mkdir(parents=True, exist_ok=True)
    return configuration(
        data,
        **{
            "schedule.train_steps": STEPS,
            "logging.directory": folder,
            "logging.eval_interval": 10,
            "data.validation": f"{{captions: '{data / 'captions'}'}}",
            "data.validation_documents": 8,
            "data.window_packs": 48,
            "checkpoint.save_interval": 3,
            "checkpoint.keep_last": 3,
            "checkpoint.resume": "auto",
            "parallel.timeout_s": 20,
            "faults.timeout_s": 10,
            **fields,
        },
    )


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 data-parallel ranks that nobody disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    assert Ranks(2, _config(data, folder), folder).end(240) == [0, 0], (folder / "rank0.log").read_text()
    return folder


@pytest.mark.chaos
@pytest.mark.distributed
@pytest.mark.timeout(1500)
def test_killed_twenty_times(data: Path, alone: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    config = _config(data, tmp_path)
    kills, steps_at_kill, duration = 0, [], 6.0
    while kills < KILLS:
        ranks = Ranks(2, config, tmp_path)
        time.sleep(rng.uniform(0.2, duration))
        if ranks.running():
            os.kill(ranks.processes[rng.randrange(2)].pid, signal.SIGKILL)
            kills += 1
        codes = ranks.end(60)
        assert None not in codes, "a rank outlived its neighbour by a minute"
        steps_at_kill.append(_last_step(tmp_path))
        if codes == [0, 0]:  # it came to its end: begin again from nothing
            for path in (tmp_path / "checkpoints").glob("*"):
                _remove(path)
            (tmp_path / "metrics.jsonl").unlink()
    assert Ranks(2, config, tmp_path).end(240) == [0, 0], (tmp_path / "rank0.log").read_text()[-3000:]
    assert len(set(steps_at_kill)) > 5, f"kills were to come at many places, not only at {steps_at_kill}"
    assert _records(tmp_path) == _records(alone)
    for rank in range(2):
        ours, theirs = np.load(tmp_path / f"rank{rank}.npz"), np.load(alone / f"rank{rank}.npz")
        assert sorted(ours.files) == sorted(theirs.files)
        for name in theirs.files:
            assert np.array_equal(ours[name], theirs[name]), name


def _last_step(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=-1)


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("layout", [{}, TP2, PP2], ids=["dp1", "tp2", "pp2"])
def test_another_layout_goes_on_with_the_same_batches(
    layout: dict[str, Any], data: Path, alone: Path, tmp_path: Path
) -> None:
    """Begun on 2 data-parallel ranks, ended on another layout: the documents of every step, and losses to 1e-4."""
    half = _config(data, tmp_path, **{"checkpoint.save_interval": 20})
    ranks = Ranks(2, half, tmp_path)
    until = time.monotonic() + 120
    while not (tmp_path / "checkpoints" / "step-00000020").is_dir() and time.monotonic() < until:
        time.sleep(0.05)
    for process in ranks.processes:
        process.kill()
    ranks.end(10)
    config = _config(data, tmp_path, **{f"parallel.{k}": v for k, v in layout.items()})
    size = 2 if layout else 1
    assert Ranks(size, config, tmp_path).end(240) == [0] * size, (tmp_path / "rank0.log").read_text()[-3000:]
    ours, theirs = _records(tmp_path), _records(alone)
    assert [(r["step"], r.get("documents")) for r in ours] == [(r["step"], r.get("documents")) for r in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        if mine["kind"] == "train":
            assert mine["loss"] == pytest.approx(other["loss"], abs=1e-4), mine["step"]
