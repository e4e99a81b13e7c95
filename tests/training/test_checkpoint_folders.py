"""How a checkpoint gets its name, whatever instant a process is killed at, and which ones are removed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from megatron_vlm.errors import DataError
from megatron_vlm.training.checkpoint import folders


def _write(path: Path, content: str = "") -> Path:
    path.mkdir(parents=True)
    (path / folders.RUN_FILE).write_text(json.dumps({"content": content}))
    (path / "metadata.json").write_text("{}")
    (path / ".metadata").write_bytes(b"")
    return path


def _content(path: Path) -> str:
    return str(json.loads((path / folders.RUN_FILE).read_text())["content"])


def _killed_at(event: int, folder: Path, step: int) -> bool:
    """Publish `.new.partial` as `step` and prune, in a process that SIGKILLs itself at the `event`-th thing that it does to
    a file. Returns whether it came to that."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(name: str, args: tuple[object, ...]) -> None:
            nonlocal seen
            if name in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir"):
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(count)
        final = folders.step_folder(folder, step)
        folders.publish(folder / f".{final.name}.new.partial", final)
        folders.prune(folder, final, keep_last=1, keep_every=0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("step", [20, 10])  # another step; the same one again, after a resume from an earlier one
def test_killed_at_every_instant_the_old_or_the_new_one_is_taken(step: int, tmp_path: Path) -> None:
    event, outcomes = 0, []
    while True:
        folder = tmp_path / str(event)
        _write(folder / "step-00000010", "old")
        (folder / "latest").write_text("step-00000010\n")
        _write(folder / f".step-{step:08d}.new.partial", "new")
        killed = _killed_at(event, folder, step)
        folders.recover(folder)
        outcomes.append(_content(folders.find_checkpoint(folder)))
        hidden = [path.name for path in folder.iterdir() if path.name.startswith(".") or path.name.endswith(".partial")]
        assert hidden == []
        if not killed:
            break
        event += 1
    assert event > 10
    assert outcomes == sorted(outcomes, reverse=True)  # old ... old, new ... new
    assert set(outcomes) == {"old", "new"}
    assert [path.name for path in folders.complete_checkpoints(folder)] == [f"step-{step:08d}"]


def test_latest_goes_first_then_those_before_it_then_later_ones(tmp_path: Path) -> None:
    paths = {step: _write(folders.step_folder(tmp_path, step)) for step in (10, 20, 30, 40)}
    (tmp_path / "latest").write_text("step-00000030\n")
    assert folders.in_line(tmp_path) == [paths[step] for step in (30, 20, 10, 40)]
    shutil.rmtree(paths[30])  # latest points to nothing
    assert folders.in_line(tmp_path) == [paths[step] for step in (30, 20, 10, 40)]
    assert folders.find_checkpoint(tmp_path) == paths[20]


@pytest.mark.parametrize("content", ["", "../elsewhere\n", "step-x", "\udcff"])
def test_a_latest_that_names_no_checkpoint_is_not_followed(content: str, tmp_path: Path) -> None:
    path = _write(folders.step_folder(tmp_path, 10))
    (tmp_path / "latest").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert folders.latest_of(tmp_path) is None
    assert folders.find_checkpoint(tmp_path) == path


def test_a_step_that_was_given_is_not_replaced_by_another(tmp_path: Path) -> None:
    _write(folders.step_folder(tmp_path, 10))
    half = _write(folders.step_folder(tmp_path, 20))
    (half / ".metadata").unlink()
    with pytest.raises(DataError, match=r"step-00000020 is no whole checkpoint: \.metadata is missing; give an earlier one"):
        folders.find_checkpoint(half)
    with pytest.raises(DataError, match="step-00000030 is no whole checkpoint: it is not there"):
        folders.find_checkpoint(folders.step_folder(tmp_path, 30))


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "left"),
    [
        (0, 0, [10, 20, 25, 30, 40, 50, 60]),
        (1, 0, [50, 60]),
        (2, 0, [40, 50, 60]),
        (1, 20, [20, 40, 50, 60]),
        (9, 0, [10, 20, 25, 30, 40, 50, 60]),
    ],
)
def test_pruning_keeps_the_newest_and_every_nth(keep_last: int, keep_every: int, left: list[int], tmp_path: Path) -> None:
    """50 was just written by a run that was taken back; 60 is of its first attempt and waits to be replaced."""
    for step in (10, 20, 25, 30, 40, 50, 60):
        _write(folders.step_folder(tmp_path, step))
    folders.prune(tmp_path, folders.step_folder(tmp_path, 50), keep_last, keep_every)
    assert [folders.step_of(path) for path in folders.all_checkpoints(tmp_path)] == left


def test_pruning_counts_good_ones_only(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        _write(folders.step_folder(tmp_path, step))
    (folders.step_folder(tmp_path, 20) / "metadata.json").unlink()
    folders.prune(tmp_path, folders.step_folder(tmp_path, 30), keep_last=2, keep_every=0)
    assert [folders.step_of(path) for path in folders.complete_checkpoints(tmp_path)] == [10, 30]
