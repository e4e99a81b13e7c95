"""A save while training goes on: what it holds, where it loads, and what is left when the disk or a process fails."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing

from megatron_vlm.training import checkpoint as checkpoints
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration, one_step, parameters, steps

pytestmark = pytest.mark.distributed


def _moments(run: Run) -> dict[str, Any]:
    kept = run.engine.optimizer.inner.optimizer.state.values()
    return {f"{i}.{key}": value.numpy().copy() for i, one in enumerate(kept) for key, value in one.items() if value.dim()}


def _signal_writer(run: Run, number: int) -> None:
    assert run.saver._writer is not None
    os.kill(run.saver._writer.process_id or 0, number)


def _step_between_copy_and_end(config: Any) -> tuple[dict[str, Any], ...]:
    run = Run(config)
    run._start()
    run.save(last=False)  # the writer is there
    run.saver.finish()
    one_step(run)
    _signal_writer(run, signal.SIGSTOP)
    run.save(last=False)
    saved = parameters(run), _moments(run)
    one_step(run)
    after = parameters(run), _moments(run)
    run.saver.poll()
    assert run.saver.pending
    assert [path.name for path in checkpoints.complete_checkpoints(folder_of(run))] == ["step-00000000"]
    _signal_writer(run, signal.SIGCONT)
    run.saver.finish()
    run.saver.close()
    return *saved, *after


def folder_of(run: Run) -> Path:
    return checkpoints.checkpoint_folder(run.config)


def _loaded(config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    run = Run(config)
    run._start()
    return parameters(run), _moments(run)


def test_a_step_after_the_copy_is_not_in_the_checkpoint(data: Path, tmp_path: Path) -> None:
    config = configuration(data, **{"logging.directory": tmp_path})
    written = run_ranks(2, _step_between_copy_and_end, config)
    read = run_ranks(2, _loaded, configuration(data, **{"logging.directory": tmp_path, "checkpoint.resume": "auto"}))
    for (weights, moments, later_weights, later_moments), (ours, our_moments) in zip(written, read, strict=True):
        assert any((weights[name] != later_weights[name]).any() for name in weights)
        assert all(np.array_equal(ours[name], value) for name, value in weights.items())
        assert moments.keys() == our_moments.keys() != set()
        assert any((moments[name] != later_moments[name]).any() for name in moments)
        assert all(np.array_equal(our_moments[name], value) for name, value in moments.items())


def _all_tensors(checkpoint: Path) -> dict[str, Any]:
    state = dist_checkpointing.load_plain_tensors(str(checkpoint))
    return {name: value.numpy() for name, value in state.items() if isinstance(value, torch.Tensor)}


def _save_both_ways(config: Any) -> None:
    run = Run(config)
    run._start()
    one_step(run)
    run.save(last=False)
    run.step += 1
    run.save(last=True)
    run.saver.close()


def test_both_ways_write_the_same_files(data: Path, tmp_path: Path) -> None:
    run_ranks(2, _save_both_ways, configuration(data, TP2, **{"logging.directory": tmp_path}))
    beside, here = checkpoints.complete_checkpoints(tmp_path / "checkpoints")
    names = sorted(path.name for path in beside.iterdir())
    assert names == sorted(path.name for path in here.iterdir())
    assert len([name for name in names if name.endswith(".distcp")]) == 4
    assert checkpoints.content_damage(beside) == checkpoints.content_damage(here) == []
    ours, theirs = (run_ranks(1, _all_tensors, folder)[0] for folder in (beside, here))
    assert ours.keys() == theirs.keys()
    assert len(ours) > 60
    assert all(np.array_equal(ours[name], value) for name, value in theirs.items())


def _train(config: Any) -> tuple[int, str, list[str]]:
    run = Run(config)
    outcome = run.train()
    return outcome.exit_code, str(outcome.checkpoint), [child.name() for child in psutil.Process().children(recursive=True)]


def test_a_run_that_saves_beside_its_steps_goes_on_in_another_layout(data: Path, tmp_path: Path) -> None:
    """TP2, a save every step; then step 3 and 4 in PP2 from the save of step 3, with the losses of TP2."""
    fields = {"logging.directory": tmp_path, "checkpoint.save_interval": 1}
    config = configuration(data, TP2, **fields)
    last = str(checkpoints.step_folder(tmp_path / "checkpoints", 5))
    assert run_ranks(2, _train, config) == [(0, last, [])] * 2
    found = checkpoints.complete_checkpoints(tmp_path / "checkpoints")
    assert [path.name for path in found] == [f"step-{step:08d}" for step in range(1, 6)]
    assert not any(checkpoints.content_damage(path) for path in found)
    again = {"logging.directory": tmp_path / "other", "checkpoint.resume": found[2]}
    expected, moved = (run_ranks(2, steps, configuration(data, layout, **again), 2)[0] for layout in (TP2, PP2))
    for ours, theirs in zip(moved, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def _writer_killed(config: Any) -> list[list[str]]:
    """Rank 1's writer process is killed before it has written; the save after that has another."""
    run, seen = Run(config), []
    run._start()
    for kill in (False, True, False):
        if kill and run.topology.rank == 1:
            _signal_writer(run, signal.SIGSTOP)
        run.save(last=False)
        if kill and run.topology.rank == 1:
            _signal_writer(run, signal.SIGKILL)
        run.saver.finish()
        seen.append(sorted(path.name for path in folder_of(run).iterdir()))
        dist.barrier()  # both have looked before the next save begins
        run.step += 1
    run.saver.close()
    return seen


def test_a_writer_that_dies_fails_one_save_on_all_ranks(data: Path, tmp_path: Path) -> None:
    config = configuration(data, **{"logging.directory": tmp_path, "checkpoint.on_failed_save": "continue"})
    first, last = ["latest", "step-00000000"], ["latest", "step-00000000", "step-00000002"]
    assert run_ranks(2, _writer_killed, config) == [[first, first, last]] * 2


def _rank_killed_beside_its_writer(config: Any, pipe: str) -> None:
    run = Run(config)
    run._start()
    run.save(last=False)
    assert run.saver._writer is not None
    Path(pipe).write_text(str(run.saver._writer.process_id))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_writer_does_not_outlive_its_rank(data: Path, tmp_path: Path) -> None:
    config = configuration(data, **{"logging.directory": tmp_path})
    note = tmp_path / "writer"
    with pytest.raises(AssertionError, match="died without a word"):
        run_ranks(1, _rank_killed_beside_its_writer, config, str(note))
    writer = int(note.read_text())
    if psutil.pid_exists(writer):
        psutil.wait_procs([psutil.Process(writer)], timeout=20)
    assert not psutil.pid_exists(writer) or psutil.Process(writer).status() == psutil.STATUS_ZOMBIE
