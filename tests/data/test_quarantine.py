"""Rejections are counted, written down, and stop a strict run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_vlm.data.quarantine import Quarantine, Reason, Rejection
from megatron_vlm.errors import DataError

REJECTION = Rejection(Path("a.tar"), "000", Reason.MISSING_CAPTION, "no \ud800 caption", 5)


def test_rows_and_counts(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "new" / "q.jsonl")
    quarantine.add(REJECTION)
    quarantine.add(Rejection(Path("b.tar"), "1", Reason.BROKEN_FILE, "x", 0))
    assert not (tmp_path / "new" / "q.jsonl").exists()
    quarantine.commit()
    rows = [json.loads(line) for line in (tmp_path / "new" / "q.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "file": "a.tar",
        "key": "000",
        "reason": "missing_caption",
        "detail": "no \ud800 caption",
    }
    assert [row["key"] for row in rows] == ["000", "1"]
    assert quarantine.by_reason() == {"broken_file": 1, "missing_caption": 1}
    assert quarantine.first == REJECTION


def test_without_rejections_the_file_of_an_earlier_run_goes(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("old")
    Quarantine(tmp_path / "q.jsonl").commit()
    assert list(tmp_path.iterdir()) == []


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "q.jsonl")
    quarantine.add(REJECTION)
    quarantine.discard()
    assert list(tmp_path.iterdir()) == []


def test_strict_names_file_record_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tar, record '000': missing_caption: .*without --strict"):
        Quarantine(tmp_path / "q.jsonl", strict=True).add(REJECTION)
    assert list(tmp_path.iterdir()) == []
