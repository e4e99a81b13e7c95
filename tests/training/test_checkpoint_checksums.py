"""checksums.json finds what changed, whichever byte it was and whoever looks."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.data.checksums import blocks_of
from megatron_vlm.training.checkpoint.checksums import (
    CHECKSUM_FILE,
    checksum_of,
    checksum_text,
    content_damage,
    read_checksums,
    size_damage,
)


def _checkpoint(folder: Path, files: dict[str, bytes], block_bytes: int | None = None) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    text = checksum_text({name: checksum_of(folder / name) for name in files})
    if block_bytes is not None:  # as a later version with smaller blocks would write it
        table = json.loads(text)
        table["block_bytes"] = block_bytes
        for name, content in files.items():
            blocks = blocks_of(len(content), block_bytes)
            table["files"][name]["sha256"] = [hashlib.sha256(content[b.start : b.stop]).hexdigest() for b in blocks]
        text = json.dumps(table)
    (folder / CHECKSUM_FILE).write_text(text)
    return folder


def test_it_holds_what_sha256sum_says(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9
    _checkpoint(tmp_path, {"a": content, "empty": b""})
    _, files = read_checksums(tmp_path)
    assert files["a"] == {"size": len(content), "sha256": [hashlib.sha256(content).hexdigest()]}
    assert files["empty"] == {"size": 0, "sha256": []}
    assert content_damage(tmp_path) == []
    assert size_damage(tmp_path) is None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found_by_one_of_the_parts(data: st.DataObject) -> None:
    files = data.draw(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.binary(min_size=1, max_size=40), min_size=1))
    parts = data.draw(st.integers(1, 5))
    name = data.draw(st.sampled_from(sorted(files)))
    at = data.draw(st.integers(0, len(files[name]) - 1))
    with tempfile.TemporaryDirectory() as where:
        folder = _checkpoint(Path(where), files, block_bytes=7)
        assert [content_damage(folder, part, parts, workers=1) for part in range(parts)] == [[]] * parts
        content = bytearray(files[name])
        content[at] ^= 1 << data.draw(st.integers(0, 7))
        (folder / name).write_bytes(content)
        found = [problem for part in range(parts) for problem in content_damage(folder, part, parts, workers=1)]
        block = at // 7 * 7
        assert found == [f"{name} is damaged: its bytes {block} to {min(block + 7, len(content))} have another sha256"]
        assert size_damage(folder) is None


@pytest.mark.parametrize("change", [-1, 1])
def test_another_size_is_found_without_reading(change: int, tmp_path: Path) -> None:
    _checkpoint(tmp_path, {"a": b"12345", "b": b"6"})
    (tmp_path / "a").write_bytes(b"x" * (5 + change))
    assert size_damage(tmp_path) == f"a has {5 + change} bytes, 5 were written"
    assert content_damage(tmp_path, 1, 2) == [f"a has {5 + change} bytes, 5 were written"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    _checkpoint(tmp_path, {"a": b"1", "b": b"2"})
    (tmp_path / "b").unlink()
    assert size_damage(tmp_path) == "b is missing"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"algorithm": "md5", "block_bytes": 1, "files": {}}', '{"files": 3}'])
def test_a_table_that_is_none_is_damage(text: str, tmp_path: Path) -> None:
    (tmp_path / CHECKSUM_FILE).write_text(text)
    assert str(size_damage(tmp_path)).startswith("checksums.json cannot be read (")
    assert content_damage(tmp_path)[0].startswith("checksums.json cannot be read (")


def test_digests_that_were_cut_off_do_not_pass(tmp_path: Path) -> None:
    _checkpoint(tmp_path, {"a": b"1" * 20}, block_bytes=7)
    table = json.loads((tmp_path / CHECKSUM_FILE).read_text())
    table["files"]["a"]["sha256"].pop()
    (tmp_path / CHECKSUM_FILE).write_text(json.dumps(table))
    assert content_damage(tmp_path) == ["checksums.json has 2 digests of a, not one for each block"]


def test_none_at_all_is_said_with_the_way_round_it(tmp_path: Path) -> None:
    assert size_damage(tmp_path) is None
    assert content_damage(tmp_path) == ["checksums.json is missing (--checkpoint.verify false loads it unchecked)"]
