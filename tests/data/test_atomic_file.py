"""Files have their names when they are whole, and any name of a file can be written down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megatron_vlm.data import atomic_file


def test_a_name_that_is_no_utf8_is_read_back_as_it_was(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xc3\xa9.jsonl")
    atomic_file.write_text(tmp_path / "f.json", json.dumps({"path": name}, ensure_ascii=False))
    content = (tmp_path / "f.json").read_bytes()
    assert b"caf\\udce9 \xc3\xa9.jsonl" in content
    assert os.fsencode(json.loads(content)["path"]) == b"caf\xe9 \xc3\xa9.jsonl"


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Two files and one that is stale, with others written aside for the two."""
    finals = [tmp_path / "a", tmp_path / "b"]
    for final in [*finals, tmp_path / "stale"]:
        final.write_text("old")
    for final in finals:
        atomic_file.write_aside(final, "new")
    return finals


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix != ".partial"}


def test_together_they_replace_what_was_there(two: list[Path], tmp_path: Path) -> None:
    atomic_file.commit_together(two, [tmp_path / "stale"])
    assert contents(tmp_path) == {"a": "new", "b": "new"}


def test_a_full_disk_touches_nothing(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = atomic_file.sync_file

    def full(path: Path) -> None:
        own(path)
        if path.name == "b.partial":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_file, "sync_file", full)
    with pytest.raises(OSError, match="No space"):
        atomic_file.commit_together(two, [tmp_path / "stale"])
    assert contents(tmp_path) == {"a": "old", "b": "old", "stale": "old"}


def test_the_last_is_never_there_beside_others(two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    own = atomic_file.commit

    def commit(final: Path) -> None:
        seen.append(contents(tmp_path))
        own(final)

    monkeypatch.setattr(atomic_file, "commit", commit)
    atomic_file.commit_together(two, [tmp_path / "stale"])
    assert seen == [{"a": "old"}, {"a": "new"}]
