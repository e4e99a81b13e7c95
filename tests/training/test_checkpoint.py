"""Which folders are checkpoints, which one is taken, and what is cleared away: without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_vlm.config.bookkeeping import CheckpointConfig, LoggingConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import DataError
from megatron_vlm.training import checkpoint as checkpoints


def _write(folder: Path, step: int) -> Path:
    path = checkpoints.step_folder(folder, step)
    path.mkdir(parents=True)
    (path / checkpoints.RUN_FILE).write_text(json.dumps({"step": step}))
    (path / "metadata.json").write_text("{}")
    (path / ".metadata").write_bytes(b"")
    return path


def test_the_newest_whole_one_is_found_from_every_folder_above(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    paths = [_write(folder, step) for step in (9, 100, 20)]
    assert checkpoints.complete_checkpoints(folder) == [paths[0], paths[2], paths[1]]
    for where in (tmp_path, folder, paths[1]):
        assert checkpoints.find_checkpoint(where) == paths[1]
    assert checkpoints.find_checkpoint(paths[0]) == paths[0]
    assert checkpoints.read_run_file(paths[0]) == {"step": 9}


@pytest.mark.parametrize("missing", [checkpoints.RUN_FILE, "metadata.json", ".metadata"])
def test_one_that_lacks_a_file_is_passed_over_with_a_word(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, damaged = _write(tmp_path, 1), _write(tmp_path, 2)
    (damaged / missing).unlink()
    assert not checkpoints.is_complete(damaged)
    assert checkpoints.find_checkpoint(tmp_path) == whole
    assert f"passing over the damaged checkpoint {damaged}: {missing} is missing" in capsys.readouterr().err


def test_no_checkpoint_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no checkpoint here \(a folder step-\* with run\.json\)"):
        checkpoints.find_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "\xff"])
def test_an_unreadable_run_file_is_named(content: str | None, tmp_path: Path) -> None:
    path = _write(tmp_path, 3)
    (path / checkpoints.RUN_FILE).unlink()
    if content is not None:
        (path / checkpoints.RUN_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"run\.json: cannot be read .*; take an earlier checkpoint"):
        checkpoints.read_run_file(path)
    assert not checkpoints.is_complete(path)


def test_what_an_interrupted_save_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    whole = _write(tmp_path, 4)
    partial = tmp_path / ".step-00000005.partial"
    partial.mkdir()
    (partial / "shard").write_bytes(b"half")
    checkpoints.remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [whole]


def test_checkpoints_are_in_the_run_folder_unless_it_is_said_otherwise() -> None:
    logging = LoggingConfig(directory="runs/a")
    assert checkpoints.checkpoint_folder(RunConfig(logging=logging)) == Path("runs/a/checkpoints")
    elsewhere = CheckpointConfig(directory="big/disk")
    assert checkpoints.checkpoint_folder(RunConfig(logging=logging, checkpoint=elsewhere)) == Path("big/disk")
