"""A damaged checkpoint is found by all ranks together, and all of them take the one before it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.cli.main import main
from megatron_vlm.training import checkpoint as checkpoints
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import TP2, configuration

pytestmark = pytest.mark.distributed


def _save_twice(config: Any) -> None:
    run = Run(config)
    run._start()
    for _ in range(2):
        run.step += 1
        run._enter_stage()
        run.save()


def _choose_with_damage(config: Any, folder: str) -> list[Any]:
    """For each damage of the newest checkpoint, done by rank 0: what each rank chooses, or the error's text."""
    import torch.distributed as dist

    from megatron_vlm.errors import UserError
    from megatron_vlm.parallel.topology import initialize

    initialize(config.parallel, 0)
    newest = Path(folder) / "step-00000002"
    kept = newest.with_name("kept")
    answers: list[Any] = []
    for do in (_nothing, _flip_a_byte, _cut, _remove, _remove_checksums, _lose_the_folder, _damage_both):
        if dist.get_rank() == 0:
            shutil.copytree(Path(folder), kept)
            do(newest)
        dist.barrier()
        try:
            found = checkpoints.choose_checkpoint(config)
            answers.append(found.name if found else None)
        except UserError as error:
            answers.append(f"{type(error).__name__}: {error}")
        dist.barrier()
        if dist.get_rank() == 0:
            for path in Path(folder).iterdir():
                if path != kept:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for path in kept.iterdir():
                path.rename(Path(folder) / path.name)
            kept.rmdir()
        dist.barrier()
    return answers


def _nothing(newest: Path) -> None: ...


def _flip_a_byte(newest: Path) -> None:
    path = max(newest.glob("*.distcp"), key=lambda one: one.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut(newest: Path) -> None:
    path = next(newest.glob("__1_*.distcp"))
    path.write_bytes(path.read_bytes()[:-1])


def _remove(newest: Path) -> None:
    (newest / "common.pt").unlink()


def _remove_checksums(newest: Path) -> None:
    (newest / "checksums.json").unlink()


def _lose_the_folder(newest: Path) -> None:
    shutil.rmtree(newest)


def _damage_both(newest: Path) -> None:
    _cut(newest)
    _flip_a_byte(newest.with_name("step-00000001"))


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    run_ranks(2, _save_twice, configuration(data, TP2, **{"logging.directory": tmp_path}))
    return tmp_path / "checkpoints"


def test_every_rank_takes_the_same_one_before(
    folder: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configuration(data, TP2, **{"logging.directory": tmp_path, "checkpoint.resume": "auto"})
    answers = run_ranks(2, _choose_with_damage, config, str(folder))
    assert answers[0] == answers[1]
    assert answers[0][:6] == ["step-00000002", *["step-00000001"] * 5]
    assert answers[0][6] == f"DataError: {folder}: none of its 2 checkpoints is whole; move them away to begin anew"
    warned = [line for line in capfd.readouterr().err.splitlines() if "passing over the damaged checkpoint" in line]
    assert len(warned) == 7
    for line, said in zip(
        warned,
        ["is damaged: its bytes 0 to ", "bytes, ", "common.pt is missing", "checksums.json is missing", "it is not there"],
        strict=False,
    ):
        assert said in line
        assert "step-00000002: " in line


def test_one_that_was_given_by_name_is_refused_by_all(folder: Path, data: Path, tmp_path: Path) -> None:
    _flip_a_byte(folder / "step-00000002")
    given = {"logging.directory": tmp_path / "other", "checkpoint.resume": folder / "step-00000002"}
    with pytest.raises(AssertionError, match=r"DataError: .*step-00000002 is no whole checkpoint: .*\.distcp is damaged"):
        run_ranks(2, _start, configuration(data, TP2, **given))
    assert run_ranks(2, _start, configuration(data, TP2, **given, **{"checkpoint.verify": "false"})) == [2, 2]


def test_inspect_verifies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--verify"]) == 0
    shown = capsys.readouterr().out
    assert f"checkpoint  {folder / 'step-00000002'}" in shown
    assert "checksums   every file is as it was written" in shown
    assert "data        " in shown
    _flip_a_byte(folder / "step-00000002")
    assert main(["inspect", str(folder)]) == 0
    assert "checksums" not in capsys.readouterr().out
    assert main(["inspect", str(folder), "--verify"]) == 2
    assert ".distcp is damaged: its bytes 0 to" in capsys.readouterr().err


def _start(config: Any) -> int:
    run = Run(config)
    run._start()
    return run.step
