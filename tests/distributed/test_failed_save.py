"""A full disk on one of two ranks: the last good checkpoint stays, the half one goes, no rank waits for another."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.errors import UserError
from megatron_vlm.training import checkpoint as checkpoints
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import TP2, configuration, one_step

pytestmark = pytest.mark.distributed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 20 MB: room for a checkpoint of the tiny model, none for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _saves_until_full(config: Any, beside: bool) -> tuple[list[str], list[list[str]], bool]:
    run, errors, seen = Run(config), [], []
    run._start()
    for _ in range(3):
        one_step(run)
        try:
            run.save(last=not beside)
            run.saver.finish()
        except UserError as error:
            errors.append(str(error))
        seen.append(sorted(path.name for path in checkpoints.checkpoint_folder(config).iterdir()))
    run.saver.close()
    last = run.saver.last
    return errors, seen, last is not None and not checkpoints.content_damage(last)


@pytest.mark.parametrize("beside", [True, False])
def test_a_full_disk_ends_the_run_and_keeps_the_last_good_one(
    beside: bool, small_disk: Path, data: Path, tmp_path: Path
) -> None:
    config = configuration(data, **{"logging.directory": tmp_path / "run", "checkpoint.directory": small_disk})
    for errors, seen, good in run_ranks(2, _saves_until_full, config, beside):
        assert good
        assert seen == [["latest", "step-00000001"]] * 3
        assert len(errors) == 2
        assert "step-00000002 could not be saved: rank" in errors[0]
        assert "No space left on device" in errors[0]
        assert errors[0].endswith("make room and go on with --resume auto")


def _train(config: Any) -> tuple[int, int, int]:
    run = Run(config)
    checkpoint = run.saver
    outcome = run.train()
    return outcome.exit_code, outcome.step, checkpoint.failures


def test_a_full_disk_need_not_end_the_run(small_disk: Path, data: Path, tmp_path: Path) -> None:
    """keep_last 1 cannot help before the new one is there. What cannot be saved at the end is an error all the same."""
    fields = {"checkpoint.save_interval": 2, "checkpoint.keep_last": 1, "checkpoint.on_failed_save": "continue"}
    config = configuration(data, **{"logging.directory": tmp_path / "run", "checkpoint.directory": small_disk, **fields})
    with pytest.raises(AssertionError, match="UserError.*step-00000005 could not be saved"):
        run_ranks(2, _train, config)
    records = (tmp_path / "run" / "metrics.jsonl").read_text().count('"kind": "train"')
    assert records == 5  # it trained on after the save of step 4 had failed
    assert [path.name for path in checkpoints.complete_checkpoints(small_disk)] == ["step-00000002"]
    assert not list(small_disk.glob(".step-*"))


def _files_limited_on_rank(config: Any, rank: int) -> tuple[str, list[str]]:
    run = Run(config)
    run._start()
    if run.topology.rank == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # a file may have 1000 bytes
    try:
        run.save()
        reason = ""
    except UserError as error:
        reason = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return reason, sorted(path.name for path in checkpoints.checkpoint_folder(config).iterdir())


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_that_cannot_write_fails_the_save_on_all(rank: int, data: Path, tmp_path: Path) -> None:
    """On rank 0 it is megatron-core's common part that fails first, between collectives."""
    config = configuration(data, TP2, **{"logging.directory": tmp_path})
    for reason, left in run_ranks(2, _files_limited_on_rank, config, rank):
        assert f"rank {rank}: " in reason
        assert f"rank {1 - rank}: " not in reason
        assert left == []


def _no_folder(config: Any) -> str:
    run = Run(config)
    run._start()
    with pytest.raises(UserError) as caught:
        run.save()
    return str(caught.value)


def test_a_folder_that_cannot_be_made_is_said_by_all_ranks(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = configuration(data, **{"logging.directory": tmp_path, "checkpoint.directory": tmp_path / "file" / "inside"})
    assert all("could not be saved: [Errno 20] Not a directory" in text for text in run_ranks(2, _no_folder, config))
