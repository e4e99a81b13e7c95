"""Patterns stand for the same files in the same order every time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from megatron_vlm.data.input_files import expand_inputs, file_sha256
from megatron_vlm.errors import DataError


def test_order_and_repetition(tmp_path: Path) -> None:
    for name in ("b1.tar", "a2.tar", "a1.tar", "deep/a3.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = expand_inputs([str(tmp_path / "b*"), str(tmp_path / "**" / "*.tar")])
    assert [str(path.relative_to(tmp_path)) for path in found] == [
        "b1.tar",
        "a1.tar",
        "a2.tar",
        "deep/a3.tar",
    ]


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "a[1].tar").touch()
    assert expand_inputs([str(tmp_path / "a[1].tar")]) == [tmp_path / "a[1].tar"]


def test_a_pattern_without_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for pattern in ("*.tar", "folder"):
        with pytest.raises(DataError, match="no input file matches"):
            expand_inputs([str(tmp_path / pattern)])


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()
