"""Ranges of a file arrive in order and whole, whichever way the kernel lets them be copied."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from megatron_vlm.data import byte_copy
from megatron_vlm.data.byte_copy import ByteCopier
from megatron_vlm.errors import DataError

RANGES = [(0, 1), (5, 5), (10, 90), (3, 1000), (900, 1000), (0, 1000), (999, 1000), (1, 400)]


def copy(folder: Path, content: bytes, ranges: list[tuple[int, int]]) -> tuple[bytes, int]:
    """What is in the target, after what was in it before, and the bytes that were reported."""
    (folder / "source").write_bytes(content)
    counted: list[int] = []
    target = os.open(folder / "target", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(target, b"before")
    try:
        with ByteCopier(folder / "source", content, target, counted.append) as copier:
            for start, stop in ranges:
                copier.append(start, stop)
    finally:
        os.close(target)
    return (folder / "target").read_bytes(), sum(counted)


@pytest.fixture(params=["in the kernel", "refused", "nothing copied", "no such call"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(byte_copy, "LONG", 64)
    monkeypatch.setattr(byte_copy, "_AT_ONCE", 100)
    monkeypatch.setattr(byte_copy, "_GATHERED", 70)

    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "another file system")

    if request.param == "refused":
        monkeypatch.setattr(os, "copy_file_range", refuse)
    elif request.param == "nothing copied":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: 0)
    elif request.param == "no such call":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    return str(request.param)


def test_ranges_arrive_in_order(tmp_path: Path, way: str) -> None:
    content = os.urandom(1000)
    expected = b"".join(content[start:stop] for start, stop in RANGES)
    assert copy(tmp_path, content, RANGES) == (b"before" + expected, len(expected))


def test_a_source_that_was_cut_meanwhile_is_told(tmp_path: Path, way: str) -> None:
    (tmp_path / "source").write_bytes(bytes(100))
    target = os.open(tmp_path / "target", os.O_WRONLY | os.O_CREAT)
    try:
        with (
            pytest.raises(DataError, match="ends at byte 100"),
            ByteCopier(tmp_path / "source", bytes(500), target) as copier,
        ):
            copier.append(0, 500)
    finally:
        os.close(target)


def test_what_is_wrong_with_a_disk_is_no_reason_to_try_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    monkeypatch.setattr(byte_copy, "LONG", 1)
    with pytest.raises(OSError, match="no space left"):
        copy(tmp_path, b"abc", [(0, 3)])
