"""What a part keeps of its unit, and where."""

from __future__ import annotations

from pathlib import Path

from megatron_vlm.data.building.part import Part, PartWriter
from megatron_vlm.data.building.prepared import PreparedBatch
from megatron_vlm.data.quarantine import Reason, Rejection


def write(folder: Path, rejections: int, absent: list[str]) -> Part:
    writer = PartWriter(folder, 3)
    for first in range(0, rejections, 100):
        numbers = range(first, first + 100)
        rejected = [Rejection("a.jsonl", "\ud800", Reason.EMPTY_TEXT, "é" * 50, number=number) for number in numbers]
        writer.add(PreparedBatch(rejections=rejected), 100)
    writer.add_absent(absent)
    writer.commit()
    writer.discard()
    part = Part.find(folder, 3, verify=True)
    assert part is not None
    return part


def test_what_was_set_aside_is_kept_on_disk(tmp_path: Path) -> None:
    """A list of a million in every worker, and of all units at the end, would take as many kilobytes."""
    part = write(tmp_path, 2000, [])
    assert (part.counts.reasons, part.counts.lost) == ({"empty_text": 2000}, 2000)
    rows = list(part.rejections())
    assert part.counts.first == rows[0]
    assert [row["record"] for row in rows] == list(range(2000))
    assert {(row["file"], row["key"], row["detail"]) for row in rows} == {("a.jsonl", "\ud800", "é" * 50)}
    assert (tmp_path / f"{3:08d}.json").stat().st_size < 2000


def test_a_part_is_done_until_a_picture_comes_that_it_lacks(tmp_path: Path) -> None:
    part = write(tmp_path, 0, [str(tmp_path / name) for name in ("a.jpg", "b\ud800.jpg")])
    assert not part.lacks_what_is_there()
    (tmp_path / "a.jpg").write_bytes(b"P")
    assert part.lacks_what_is_there()


def test_every_file_of_a_part_is_compared_with_what_was_written(tmp_path: Path) -> None:
    for suffix in (".bin", ".columns", ".rejections", ".absent"):
        write(tmp_path, 100, ["a"])
        with (tmp_path / f"{3:08d}{suffix}").open("ab") as stream:
            stream.write(b"x")
        assert Part.find(tmp_path, 3, verify=True) is None
