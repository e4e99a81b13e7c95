"""Files of features: each different picture once, at its place, whole or not there, whatever kills the writers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.kept_features import feature_writer
from megatron_vlm.data.kept_features.feature_facts import FeatureFacts, differences, read_facts
from megatron_vlm.data.kept_features.feature_reader import FeatureReader
from megatron_vlm.data.kept_features.feature_writer import FeatureWriter
from megatron_vlm.data.kept_features.picture_blocks import PictureBlocks, picture_blocks
from megatron_vlm.data.validation import validate_dataset
from megatron_vlm.errors import DataError

WIDTH, PATCH, SIDE = 3, 2, 4
#: a document is texts (None) and pictures, by number
Documents = Sequence[Sequence[int | None]]
documents = st.lists(st.lists(st.one_of(st.none(), st.integers(0, 5)), max_size=5), min_size=1, max_size=6)


def dataset(prefix: Path, content: Documents, facts: bool = False) -> IndexedReader:
    with IndexedWriter(prefix, np.int32, multimodal=True, facts=facts) as writer:
        for document in content:
            for part in document:
                if part is None:
                    writer.add_text([7, 8, 9])
                else:
                    writer.add_image(bytes([part]) * (part + 1), (2 + part, 9))
            writer.end_document()
    return IndexedReader(prefix)


def blocks_of(reader: IndexedReader, rows: PictureRows | None = None) -> PictureBlocks:
    return picture_blocks(reader, rows or PictureRows(4), SIDE, PATCH, WIDTH)


def facts_of(reader: IndexedReader, weights: str = "ab") -> FeatureFacts:
    return FeatureFacts(weights, {"image_size": SIDE, "means": [0.5, 0.5]}, WIDTH, reader.fingerprint)


def content_of(blocks: PictureBlocks, block: int) -> np.ndarray:
    size = int(blocks.bounds[block + 1] - blocks.bounds[block]) // 2
    return (np.arange(size) + 1000 * (block + 1)).astype(np.uint16)


def write(writer: FeatureWriter, parts: Sequence[int], broken: dict[str, str] | None = None) -> None:
    for part in parts:
        for block in writer.blocks_of(part):
            writer.write_block(block, content_of(writer.blocks, block))
        writer.end_part(part, broken or {})
    writer.close()


def check(prefix: Path, reader: IndexedReader, blocks: PictureBlocks) -> None:
    """What is read for each picture is what was written for the first of the same bytes."""
    kept = FeatureReader(prefix, reader)
    place = {reader.image_bytes(int(sequence)): block for block, sequence in enumerate(blocks.first)}
    for sequence in range(reader.sequence_count):
        if reader.modes[sequence]:
            wanted = content_of(blocks, place[reader.image_bytes(sequence)])
            into = np.zeros(len(wanted), np.uint16)
            kept.read(sequence, into)
            assert (into == wanted).all()
        else:
            assert kept.reader.sequence_lengths[sequence] == 0
    assert (kept.reader.document_indices == reader.document_indices).all()
    assert kept.reader.data[:] == b"".join(content_of(blocks, b).tobytes() for b in range(len(blocks.first)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=documents, processes=st.integers(1, 3), part=st.integers(1, 3), killed=st.integers(0, 6))
def test_a_file_is_the_same_from_any_processes_and_after_kills(
    content: Documents, processes: int, part: int, killed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("files")
    reader = dataset(folder / "d", content)
    if not any(picture is not None for document in content for picture in document):
        with pytest.raises(DataError, match="holds no picture"):
            blocks_of(reader)
        return
    blocks, facts = blocks_of(reader), facts_of(reader)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_writer, "PART", part)
        prefix = folder / "f[1].features"  # not a pattern
        first = FeatureWriter(prefix, facts, blocks)
        first.begin()
        write(first, range(min(killed, first.parts)))
        with open(folder / "f[1].features.journal.0.partial", "ab") as journal:
            journal.write(b'{"part": 0, "bro')  # torn
        again = [FeatureWriter(prefix, facts, blocks, rank) for rank in range(processes)]
        again[0].begin()
        done = again[0].done()
        if killed:
            assert set(done) == set(range(min(killed, first.parts)))
        for rank, writer in enumerate(again):
            write(writer, [p for p in range(rank, writer.parts, processes) if p not in done])
        assert not again[0].is_done()
        again[0].finish(reader)
        assert again[0].is_done()
    check(prefix, reader, blocks)
    assert not list(folder.glob("*.partial"))
    assert validate_dataset(prefix).sound


def test_pictures_of_their_own_aspect_have_blocks_of_their_size(tmp_path: Path) -> None:
    reader = dataset(tmp_path / "d", [[0, 3, None], [3, 5]], facts=True)
    rows = PictureRows(16, PATCH, 1)
    blocks = blocks_of(reader, rows)
    grids = [rows.grid(2 + number, 9) for number in (0, 3, 5)]
    assert blocks.sizes.tolist() == [[h * PATCH, w * PATCH] for h, w in grids]
    assert blocks.lengths.tolist() == [h * w * WIDTH for h, w in (grids[0], grids[1])] + [0] + [
        h * w * WIDTH for h, w in (grids[1], grids[2])
    ]
    (tmp_path / "d.sequences.npy").unlink()
    with pytest.raises(DataError, match="does not say how large its pictures are"):
        blocks_of(reader, rows)


def test_broken_pictures_are_named_wherever_they_repeat(tmp_path: Path) -> None:
    reader = dataset(tmp_path / "d", [[0, 1], [None, 0]])
    blocks = blocks_of(reader)
    writer = FeatureWriter(tmp_path / "f", facts_of(reader), blocks)
    writer.begin()
    write(writer, [0], {"0": "no picture"})
    writer.finish(reader)
    kept, into = FeatureReader(tmp_path / "f", reader), np.zeros((2, 6), np.uint16)
    assert [kept.read(sequence, into) for sequence in (0, 1, 3)] == ["no picture", None, "no picture"]
    with pytest.raises(DataError, match="sequence 1 has 12 numbers where the picture takes 11"):
        kept.read(1, into.reshape(-1)[:11])


def test_damage_is_found_by_validate(tmp_path: Path) -> None:
    reader = dataset(tmp_path / "d", [[0, 1], [None, 0, 2]])
    writer = FeatureWriter(tmp_path / "f", facts_of(reader), blocks_of(reader))
    writer.begin()
    write(writer, [0])
    writer.finish(reader)
    for checksums in (True, False):
        assert validate_dataset(tmp_path / "f", checksums=checksums).sound
    index = bytearray((tmp_path / "f.idx").read_bytes())
    place = 34 + 4 * 5 + 8 * 4  # of the last picture's pointer
    index[place + 2] = 1
    (tmp_path / "f.idx").write_bytes(index)
    told = validate_dataset(tmp_path / "f", checksums=False).describe()
    assert "sequence 4 begins at byte" in told
    assert "is not inside its 72 bytes" in told


def test_another_encoder_begins_anew(tmp_path: Path) -> None:
    reader = dataset(tmp_path / "d", [[0, 1, 2]])
    blocks = blocks_of(reader)
    writer = FeatureWriter(tmp_path / "f", facts_of(reader), blocks)
    writer.begin()
    write(writer, [0])
    other = FeatureWriter(tmp_path / "f", facts_of(reader, "cd"), blocks)
    assert other.done() == {}
    other.begin()
    with pytest.raises(DataError, match="1 of 1 parts are not encoded; run the command again"):
        other.finish(reader)
    assert writer.done() == {}, "what was begun is gone"
    write(other, [0])
    other.finish(reader)
    assert read_facts(tmp_path / "f").weights == "cd"
    with pytest.raises(ValueError, match="features of 2 bytes for block 0"):
        other.write_block(0, np.zeros(1, np.uint16))


def test_a_disk_that_is_too_small_is_told_of_first(tmp_path: Path) -> None:
    reader = dataset(tmp_path / "d", [[0]])
    blocks = blocks_of(reader)
    huge = dataclasses.replace(blocks, bounds=blocks.bounds * 10**15)
    with pytest.raises(DataError, match=r"features of 1 pictures take 24,?000,?000.0 GB, and .* GB are free"):
        FeatureWriter(tmp_path / "f", facts_of(reader), huge).begin()
    assert not list(tmp_path.glob("f.*"))


def test_what_is_not_of_features_is_refused(tmp_path: Path) -> None:
    reader = dataset(tmp_path / "d", [[0]])
    with pytest.raises(DataError, match=r"f.json does not exist: .* make them with megatron-vlm encode"):
        FeatureReader(tmp_path / "f", reader)
    (tmp_path / "f.json").write_text(json.dumps({"tool_version": "0", "kind": "text"}), encoding="utf-8")
    with pytest.raises(DataError, match="is not of features"):
        read_facts(tmp_path / "f")
    (tmp_path / "g.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="is not a dataset's metadata"):
        FeatureWriter(tmp_path / "g", facts_of(reader), blocks_of(reader))
    damaged = facts_of(reader).as_metadata({}) | {"width": "wide"}
    (tmp_path / "f.json").write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(DataError, match="is damaged"):
        read_facts(tmp_path / "f")


def test_features_of_another_dataset_are_refused(tmp_path: Path) -> None:
    reader, other = dataset(tmp_path / "d", [[0, 1]]), dataset(tmp_path / "e", [[0, 1, 2]])
    blocks = blocks_of(reader)
    writer = FeatureWriter(tmp_path / "f", facts_of(reader), blocks)
    writer.begin()
    write(writer, [0])
    writer.finish(reader)
    with pytest.raises(DataError, match=r"f holds features of another dataset than .*e"):
        FeatureReader(tmp_path / "f", other)


@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.one_of(st.integers(), st.floats(allow_nan=False), st.lists(st.floats(0, 1)), st.text())
    ),
    st.text(),
)
def test_facts_come_back_from_json(values: dict[str, object], word: str) -> None:
    facts = FeatureFacts(word, values, 5, word, {"3": word})
    told = json.loads(json.dumps(facts.as_metadata({"more": 1})))
    assert FeatureFacts(**{name: told[name] for name in ("weights", "settings", "width", "dataset", "broken")}) == facts
    assert differences(facts, values) == []
    assert differences(facts, {**values, "e": 1}) == ["e None (here 1)"]


def test_a_dataset_whose_name_is_no_utf8(tmp_path: Path) -> None:
    reader = dataset(tmp_path / os.fsdecode(b"caf\xe9"), [[0]])
    writer = FeatureWriter(tmp_path / "f", facts_of(reader), blocks_of(reader))
    writer.begin()
    write(writer, [0])
    writer.finish(reader)
    known = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert known["of"] == str(reader.prefix)


def test_metadata_that_cannot_be_written_keeps_the_features_that_were_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = dataset(tmp_path / "d", [[0]])
    for weights in ("ab", "cd"):
        writer = FeatureWriter(tmp_path / "f", facts_of(reader, weights), blocks_of(reader))
        writer.begin()
        write(writer, [0])
        if weights == "cd":
            monkeypatch.setattr(feature_writer, "describe_checksums", lambda _: object())
            with pytest.raises(TypeError):
                writer.finish(reader)
        else:
            writer.finish(reader)
    assert read_facts(tmp_path / "f").weights == "ab"
    assert (tmp_path / "f.idx").exists()
