"""Pictures and captions of parquet rows, as img2dataset and the datasets library write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_vlm.data.captions import CaptionChoice
from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Picture, Record, Text
from megatron_vlm.data.sources.caption_rule import caption_rule
from megatron_vlm.data.sources.image_text_parquet import ImageTextParquet
from megatron_vlm.errors import DataError

ReadSource = Callable[..., list[Record | Rejection]]


def write(path: Path, rows: int = 1 << 20, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def test_bytes_and_structs_are_pictures(tmp_path: Path, read_source: ReadSource) -> None:
    captions = [" a ", "b", "c"]
    documents = [((Picture(image), Text(text)),) for image, text in ((b"A", "a"), (b"B", "b"), (b"C", "c"))]
    structs = pa.array([{"bytes": image, "path": None} for image in (b"A", b"B", b"C")])
    for column in (pa.array([b"A", b"B", b"C"]), pa.array([b"A", b"B", b"C"], pa.large_binary()), structs):
        path = write(tmp_path / "a.parquet", 1, image=column, text=captions)
        records = read_source(ImageTextParquet(), path, 100)
        assert [record.documents for record in records if isinstance(record, Record)] == documents
        assert [record.offset for record in records] == [0, 1, 2]
    path = write(tmp_path / "b.parquet", photo=[b"A"], alt=["x"], syn=[["a", "b"]], uid=["u"])
    source = ImageTextParquet(caption_rule("syn", CaptionChoice.ALL), "photo")
    (record,) = read_source(source, path)
    assert isinstance(record, Record)
    assert (record.key, record.documents) == ("u", ((Picture(b"A"), Text("a")), (Picture(b"A"), Text("b"))))


def test_draws_differ_between_rows_without_keys(tmp_path: Path, read_source: ReadSource) -> None:
    path = write(tmp_path / "a.parquet", 7, image=[b"P"] * 300, a=["a"] * 300, b=["b"] * 300)
    source = ImageTextParquet(caption_rule({"a": 1, "b": 1}))
    whole, cut = read_source(source, path), read_source(source, path, 200)
    assert [record.documents for record in whole if isinstance(record, Record)] == [
        record.documents for record in cut if isinstance(record, Record)
    ]
    drawn = [part.text for record in whole if isinstance(record, Record) for part in record.documents[0][1:]]  # type: ignore[union-attr]
    assert 100 < drawn.count("a") < 200


def test_what_is_wrong_is_told_apart(tmp_path: Path, read_source: ReadSource) -> None:
    strings = pa.array([b"t", b"t", b"\xff", b" ", None, b"t", b"t"])
    path = write(
        tmp_path / "a.parquet",
        jpg=[b"J", None, b"J", b"J", b"J", b"", b"J"],
        caption=pa.Array.from_buffers(pa.string(), 7, strings.buffers()),
        key=[f"{n:09}" for n in range(7)],
        status=["success"] * 6 + ["failed_to_download"],
        error_message=[None] * 6 + ["404"],
    )
    outcomes = read_source(ImageTextParquet(), path)
    assert isinstance(outcomes[0], Record)
    assert [(o.key, o.reason) for o in outcomes if isinstance(o, Rejection)] == [
        ("000000001", Reason.MISSING_IMAGE),
        ("000000002", Reason.INVALID_UNICODE),
        ("000000003", Reason.EMPTY_TEXT),
        ("000000004", Reason.MISSING_CAPTION),
        ("000000005", Reason.MISSING_IMAGE),
        ("000000006", Reason.FAILED_DOWNLOAD),
    ]
    path = write(tmp_path / "b.parquet", image=pa.array([{"bytes": None, "path": "/etc/passwd"}]), caption=["t"])
    (bad,) = read_source(ImageTextParquet(), path)
    assert isinstance(bad, Rejection)
    assert bad.detail == "the picture has no bytes; its path '/etc/passwd' is not followed"
    (bad,) = read_source(ImageTextParquet(), write(tmp_path / "c.parquet", image=["x.jpg"], caption=["t"]))
    assert isinstance(bad, Rejection)
    assert bad.detail == "the picture is a string, not the bytes of a file"
    whole = (tmp_path / "c.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(whole[:-3])
    (bad,) = read_source(ImageTextParquet(), tmp_path / "c.parquet")
    assert isinstance(bad, Rejection)
    assert bad.reason is Reason.BROKEN_FILE


def test_columns_that_are_not_there_are_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", photo=[b"P"], words=["t"])
    with pytest.raises(DataError, match="no column of pictures .'image' or .*it has photo, words; name the one"):
        ImageTextParquet().units(str(path), 1, 1)
    with pytest.raises(DataError, match="no column 'jpg'"):
        ImageTextParquet(image="jpg").units(str(path), 1, 1)
    with pytest.raises(DataError, match="no column of captions .'caption' or 'text' or 'txt'.*name the one"):
        ImageTextParquet(image="photo").units(str(path), 1, 1)
    assert ImageTextParquet(caption_rule({"words": 1, "elsewhere": 1}), "photo").units(str(path), 1, 1)
