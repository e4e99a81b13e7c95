"""A sound dataset is found sound, and no damage to it goes unseen."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data import validation
from megatron_vlm.data.checksums import describe_checksums, file_digests
from megatron_vlm.data.damage import LISTED
from megatron_vlm.data.indexed_format import dataset_paths
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.validation import bytes_to_read, validate_dataset
from megatron_vlm.errors import DataError

MakePicture = Callable[..., bytes]
BLOCK = 512
VOCABULARY = 300


def write(prefix: Path, make_picture: MakePicture, documents: int = 12) -> None:
    """Captioned pictures in three formats, an empty document now and then, with sidecar, metadata and checksums."""
    rng = np.random.default_rng(3)
    rows: list[tuple[int, int]] = []
    tokens = 0
    with IndexedWriter(prefix, np.int32, multimodal=True) as writer:
        for number in range(documents):
            if number % 5 != 4:
                width, height = 20 + number, 30 - number
                writer.add_image(make_picture(("JPEG", "PNG", "WEBP")[number % 3], width, height, shade=9 * number))
                writer.add_text(rng.integers(3, VOCABULARY, number + 1))
                rows += [(height, width), (number % 2, 0)]
                tokens += number + 1
            writer.end_document()
    paths = dataset_paths(prefix)
    np.save(paths.sequences, np.array(rows, "<i4"))
    files = {"bin": paths.data, "idx": paths.index, "sequences": paths.sequences}
    known = {
        "tool_version": "0",
        "kind": "image_text",
        "documents": documents,
        "tokens": tokens,
        "images": len(rows) // 2,
        "vocab_size": VOCABULARY,
        "image_token_id": 1,
        "checksums": {
            **describe_checksums({name: file_digests(path, BLOCK) for name, path in files.items()}),
            "block_bytes": BLOCK,
        },
    }
    paths.metadata.write_text(json.dumps(known))


@pytest.fixture
def dataset(tmp_path: Path, make_picture: MakePicture) -> Path:
    write(tmp_path / "d", make_picture)
    return tmp_path / "d"


@pytest.fixture(scope="module")
def original(make_picture: MakePicture) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "d", make_picture)
        yield Path(folder) / "d"


def change(path: Path, offset: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)


def edit_metadata(prefix: Path, **changes: Any) -> None:
    path = dataset_paths(prefix).metadata
    known = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in known.items() if value is not None}))


def reasons(prefix: Path, **options: Any) -> list[str]:
    return [damage.describe() for damage in validate_dataset(prefix, **options).findings.listed]


@pytest.mark.parametrize("options", [{}, {"quick": True}, {"checksums": False}, {"workers": 3}])
def test_a_sound_dataset(dataset: Path, options: dict[str, Any]) -> None:
    counted: list[int] = []
    report = validate_dataset(dataset, **options, advance=counted.append)
    assert reasons(dataset, **options) == []
    assert report.sound
    assert (report.documents, report.sequences) == (12, 20)
    assert sum(counted) == report.bytes_read <= bytes_to_read(dataset, options.get("quick", False))
    if options.get("checksums", True):
        assert report.bytes_read == bytes_to_read(dataset, options.get("quick", False))
    assert "12 documents, 20 sequences" in report.describe()
    expected = {"records"} if options == {"checksums": False} else {"checksums"}
    assert set(report.checked) == {"index", "sidecar", "counts"} | expected


@given(st.data())
def test_any_flipped_bit_is_found_and_located(original: Path, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "d"
        for suffix in (".bin", ".idx", ".sequences.npy", ".json"):
            shutil.copy(f"{original}{suffix}", f"{prefix}{suffix}")
        suffix = data.draw(st.sampled_from([".bin", ".idx", ".sequences.npy"]))
        path = Path(f"{prefix}{suffix}")
        content = bytearray(path.read_bytes())
        bit = data.draw(st.integers(0, 8 * len(content) - 1))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        report = validate_dataset(prefix)
        assert not report.sound
        places = [d for d in report.findings.listed if d.file == path and d.start is not None and d.stop is not None]
        assert any(d.start <= bit // 8 < d.stop for d in places), report.describe()  # type: ignore[operator]


@pytest.mark.parametrize("document", [0, 3, 11])
def test_the_documents_of_a_damaged_block_are_named(dataset: Path, document: int) -> None:
    from megatron_vlm.data.indexed_reader import IndexedReader

    reader = IndexedReader(dataset)
    sequence = reader.document_sequences(document)[0]
    byte = int(reader.sequence_pointers[sequence]) + 20
    touched = [
        d
        for d in range(reader.document_count)
        for s in reader.document_sequences(d)
        for at in [int(reader.sequence_pointers[s])]
        if at // BLOCK <= byte // BLOCK <= (at + 4 * int(reader.sequence_lengths[s]) - 1) // BLOCK
    ]
    flipped = bytes([reader.data[byte] ^ 1])
    change(dataset.with_name("d.bin"), byte, flipped)
    (damage,) = validate_dataset(dataset).findings.listed
    assert (damage.start, damage.stop) == (byte // BLOCK * BLOCK, min((byte // BLOCK + 1) * BLOCK, len(reader.data)))
    assert (damage.first_document, damage.last_document) == (touched[0], touched[-1])


def test_documents_of_a_damaged_sidecar_row(dataset: Path) -> None:
    path = dataset.with_name("d.sequences.npy")
    size = path.stat().st_size
    edit_metadata(dataset, checksums=None)
    change(path, size - 8, (7).to_bytes(4, "little"))
    (damage,) = validate_dataset(dataset).findings.listed
    assert damage.reason == "sequence 19 is a text of (7, 0)"
    assert damage.first_document == 11


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"PK", "is not an indexed dataset"),
        (17, b"\6", "dtype code 6"),
        (18, b"\xff" * 8, "truncated"),
        (34 + 4 * 3, b"\xff" * 4, "sequence 3 has length -1"),
        (34 + 4 * 20 + 8 * 3, b"\xff" * 8, "sequence 3 begins at byte -1 of the .bin"),
        (34 + 12 * 20 + 8 * 2, (99).to_bytes(8, "little"), "entry 2 of the document index is 99"),
        (34 + 12 * 20 + 8 * 12, (19).to_bytes(8, "little"), "should be the number of sequences, 20"),
        (34 + 12 * 20, b"\1", "entry 0 of the document index is 1, which should be 0"),
        (34 + 12 * 20 + 8 * 13 + 5, b"\7", "sequence 5 has mode 7"),
    ],
)
def test_damage_to_the_index_is_found_without_checksums(dataset: Path, offset: int, value: bytes, message: str) -> None:
    change(dataset.with_name("d.idx"), offset, value)
    for options in ({"checksums": False}, {"quick": True, "checksums": False}):
        assert any(message in reason for reason in reasons(dataset, **options))


def test_data_of_another_size(dataset: Path) -> None:
    data = dataset.with_name("d.bin")
    whole = data.read_bytes()
    data.write_bytes(whole[:-4])
    found = reasons(dataset, quick=True)
    assert any("it is cut short" in reason for reason in found)
    data.write_bytes(whole + b"more")
    assert any("goes on" in reason for reason in reasons(dataset, quick=True))
    data.write_bytes(whole + bytes(600))
    assert any("checksums were recorded" in reason for reason in reasons(dataset))


def sequence_place(prefix: Path, sequence: int) -> tuple[int, int]:
    from megatron_vlm.data.indexed_reader import IndexedReader

    reader = IndexedReader(prefix)
    start = int(reader.sequence_pointers[sequence])
    return start, start + 4 * int(reader.sequence_lengths[sequence])


@pytest.mark.parametrize(
    ("sequence", "offset", "value", "message"),
    [
        (0, 0, b"\x09", "its pad count is none that an image record can have"),
        (0, 4, b"no picture", "it begins like no JPEG, PNG or WebP"),
        (0, 4 + 2, b"\x00", "its JPEG has no marker at byte 2"),
        (2, 4 + 8 + 4 + 4, b"\xff", "its PNG has a chunk at byte 8 whose checksum is wrong"),
        (4, 4 + 5, b"\xff", "it is a WebP of"),
        (1, 0, (300).to_bytes(4, "little"), "token id 300 is outside the vocabulary of 300"),
        (3, 4, b"\xff\xff\xff\xff", "token id -1 is outside the vocabulary of 300"),
        (3, 4, (1).to_bytes(4, "little"), "its text holds the image placeholder's id 1"),
    ],
)
def test_damaged_records_are_named(dataset: Path, sequence: int, offset: int, value: bytes, message: str) -> None:
    start, stop = sequence_place(dataset, sequence)
    change(dataset.with_name("d.bin"), start + offset, value)
    report = validate_dataset(dataset, checksums=False)
    (damage,) = report.findings.listed
    assert damage.reason.startswith(f"sequence {sequence}: ")
    assert message in damage.reason
    assert (damage.start, damage.stop, damage.first_document) == (start, stop, sequence // 2)


def test_padding_is_zero(dataset: Path) -> None:
    from megatron_vlm.data.indexed_reader import IndexedReader

    reader = IndexedReader(dataset)
    padded = next(s for s in range(0, 20, 2) if reader.image_place(s)[1] < sequence_place(dataset, s)[1])
    change(dataset.with_name("d.bin"), sequence_place(dataset, padded)[1] - 1, b"x")
    assert any("padding is not zero" in reason for reason in reasons(dataset, checksums=False))


def test_a_dataset_of_megatrons_own_tools(tmp_path: Path) -> None:
    """Text alone, no metadata: the range of ids is not known, but none is negative."""
    with IndexedWriter(tmp_path / "d", np.int32) as writer:
        writer.add_text([1, 2, 3])
        writer.end_document()
    report = validate_dataset(tmp_path / "d")
    assert report.sound
    assert report.checked == ["index", "records"]
    assert any("range of token ids" in reason for reason in report.skipped)
    change(tmp_path / "d.bin", 4, b"\xff\xff\xff\xff")
    assert reasons(tmp_path / "d") == [
        f"{tmp_path / 'd.bin'}: sequence 0: token id -1 is outside the vocabulary; bytes 0 to 12; document 0"
    ]


def test_long_texts_are_compared_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "_ROWS", 3)
    ids = np.arange(3_000_000) % 60_000
    ids[2_500_000] = 65_535
    with IndexedWriter(tmp_path / "d", np.uint16) as writer:
        for part in np.split(ids, [7, 2_000_000]):
            writer.add_text(part)
            writer.end_document()
    (tmp_path / "d.json").write_text('{"vocab_size": 60000, "documents": 3, "tokens": 3000000, "images": 0}')
    (reason,) = reasons(tmp_path / "d")
    assert "sequence 2: token id 65535 is outside" in reason
    assert "document 2" in reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": 11}, "it says 11 documents, and the index has 12"),
        ({"tokens": "many"}, "it says 'many' tokens"),
        ({"checksums": {"algorithm": "md5"}}, "no sha256 of blocks"),
        ({"checksums": {"algorithm": "sha256", "block_bytes": 0}}, "blocks of 0 bytes"),
        ({"checksums": {"algorithm": "sha256", "block_bytes": 9, "bin": [4]}}, 'of "bin" are no list of digests'),
    ],
)
def test_metadata_of_something_else(dataset: Path, changes: dict[str, Any], message: str) -> None:
    edit_metadata(dataset, **changes)
    assert any(message in reason for reason in reasons(dataset))


def test_metadata_that_is_none(dataset: Path) -> None:
    for text in ("{", "[]", "[" * 100_000, "\xff"):
        dataset.with_name("d.json").write_text(text, encoding="latin-1")
        assert not validate_dataset(dataset).sound


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x93NUMPY\1\0", b"\x93NUMPY\1\0\x02\0{}"])
def test_a_sidecar_that_is_none(dataset: Path, content: bytes) -> None:
    dataset.with_name("d.sequences.npy").write_bytes(content)
    edit_metadata(dataset, checksums=None)
    assert any("d.sequences.npy" in reason for reason in reasons(dataset))


def test_more_damage_than_is_listed_is_counted(dataset: Path) -> None:
    with IndexedWriter(dataset, np.int32) as writer:
        for _ in range(LISTED + 50):
            writer.add_text([-1])
            writer.end_document()
    dataset.with_name("d.sequences.npy").unlink(missing_ok=True)
    report = validate_dataset(dataset)
    assert report.findings.total == LISTED + 50
    assert report.findings.unlisted == 50
    assert "and 50 more" in report.describe()
    assert report.as_json()["damage_counts"] == {"token id": LISTED + 50}


def test_missing_files(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="named without suffix"):
        validate_dataset(tmp_path / "nothing")
    dataset.with_name("d.bin").unlink()
    assert any("d.bin" in reason for reason in reasons(dataset))
    assert any("d.bin" in reason for reason in reasons(dataset, checksums=False))
