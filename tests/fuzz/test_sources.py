"""Damaged files of every format through their readers: whatever is in them, records come out of them, or rejections.

Sound files of a few records are mutated: bytes flipped, cut out, repeated, put in from elsewhere. Each input follows from
its number alone, so that this is all that it takes to see a failure again.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from PIL import Image

from megatron_vlm.data.encoded_pictures.picture_header import PictureHeader
from megatron_vlm.data.picture_check import check_picture
from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Picture, Record, Source, Text
from megatron_vlm.data.sources.conversations import ConversationSource
from megatron_vlm.data.sources.image_text_jsonl import ImageTextJsonl
from megatron_vlm.data.sources.image_text_parquet import ImageTextParquet
from megatron_vlm.data.sources.image_text_tar import ImageTextTar
from megatron_vlm.data.sources.interleaved import InterleavedSource
from megatron_vlm.data.sources.json_lines import JsonLines
from megatron_vlm.data.sources.parquet_text import ParquetText
from megatron_vlm.data.sources.picture_store import FolderPictures, TarPictures
from megatron_vlm.data.sources.plain_text import PlainText
from megatron_vlm.data.sources.text_tar import TextTar
from megatron_vlm.errors import DataError

FAST_INPUTS, SLOW_INPUTS = 1_000, 100_000
LONGEST_SECONDS = 2.0  # of the processor, for one input: they are of some kilobytes
FILE_LIMIT = 1 << 20  # bytes of a line or a member
ODD = [
    b"\0" * 8,
    b"\xff" * 8,
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b'"',
    b"\\",
    b"{",
    b"]",
    b"\n",
    b"[" * 2000,
    b"../",
    b"99999",
]

Pack = Callable[[bytes], bytes]
PACKS: dict[str, Pack] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


@dataclass(frozen=True)
class Kind:
    """A format: a sound file, and what reads it. The mutation comes before the packing, or after it."""

    source: Source
    sound: bytes
    suffix: str
    pack: str = ""

    @property
    def name(self) -> str:
        return f"{type(self.source).__name__}{self.suffix}{self.pack}"


def encoded(form: str, shade: int, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), (shade, 255 - shade, 7)).save(stream, form, **options)
    return stream.getvalue()


def packed_tar(members: dict[str, bytes], form: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return stream.getvalue()


def packed_table(rows: list[dict[str, Any]], **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream, row_group_size=2, **options)
    return stream.getvalue()


def make_kinds(folder: Path) -> list[Kind]:
    """All of them; `folder` gets the pictures that records name."""
    pictures = [encoded("PNG", 10), encoded("JPEG", 90), encoded("WEBP", 200, lossless=True)]
    for name, picture in zip("abc", pictures, strict=True):
        (folder / f"{name}.jpg").write_bytes(picture)
    (folder / "p.tar").write_bytes(packed_tar({f"{name}.jpg": p for name, p in zip("abc", pictures, strict=True)}, 0))
    store, tars = FolderPictures(str(folder)), TarPictures((str(folder / "p.tar"),))

    texts = [{"id": n, "text": f"é{n} of\nlines", "meta": {"x": [1.5, None]}} for n in range(5)]
    captioned = [{"image": f"{name}.jpg", "caption": [f"a {name}", "other"]} for name in "abc"]
    url = "data:image/png;base64," + base64.b64encode(pictures[0]).decode()
    said = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a square"}]
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]}]
    llava = [
        {"id": "1", "image": "a.jpg", "conversations": said},
        {"id": "2", "messages": [*chat, {"role": "assistant", "content": "it"}]},
        {"id": "3", "images": ["b.jpg", "c.jpg"], "texts": [{"user": "q", "assistant": "a"}]},
    ]
    obelics = [{"images": [None, "a.jpg", None], "texts": ["one", None, "two"], "url": f"u{n}"} for n in range(3)]
    matched = [{"image_name": "b.jpg", "matched_text_index": 1, "matched_sim": 0.5}]
    mmc4 = [{"text_list": ["one.", "two."], "image_info": matched, "similarity_matrix": [[0.1, 0.5]]} for _ in range(3)]

    def lines(records: list[dict[str, Any]]) -> bytes:
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()

    members: dict[str, bytes] = {}
    for n, picture in enumerate(pictures):
        members |= {f"0/{n}.jpg": picture, f"0/{n}.txt": b"words", f"0/{n}.json": b'{"caption": "c", "status": "success"}'}
    written = {f"{n:03}.json": json.dumps(record).encode() for n, record in enumerate(texts)} | {
        "folder/" * 15 + "x" * 80 + ".txt": b"t"
    }
    tables = [{"image": {"bytes": picture, "path": "x.jpg"}, "caption": f"c{n}"} for n, picture in enumerate(pictures)]
    rows = [{"id": f"r{n}", "image": {"bytes": picture}, "conversations": said} for n, picture in enumerate(pictures)]
    plain = {"compression": "none", "use_dictionary": False}

    return [
        *(Kind(JsonLines(limit=FILE_LIMIT), lines(texts), ".jsonl", pack) for pack in PACKS),
        Kind(JsonLines("meta.text", FILE_LIMIT), json.dumps(texts, indent=1).encode(), ".json"),
        Kind(PlainText("\n--\n"), b"\n--\n".join(f"document {n}".encode() for n in range(9)), ".txt"),
        *(Kind(TextTar(limit=FILE_LIMIT), packed_tar(written, form), ".tar") for form in (0, 1, 2)),
        *(Kind(ImageTextTar(limit=FILE_LIMIT), packed_tar(members, 2), ".tar", pack) for pack in ("", ".gz", ".zst")),
        Kind(ImageTextJsonl(folder=str(folder)), lines(captioned), ".jsonl"),
        Kind(ImageTextJsonl(folder=str(folder)), json.dumps(llava[:1] * 3).encode(), ".json", ".gz"),
        Kind(ConversationSource(store), json.dumps(llava).encode(), ".json"),
        Kind(ConversationSource(tars), lines(llava), ".jsonl"),
        Kind(InterleavedSource(store), lines(obelics), ".jsonl", ".zst"),
        Kind(InterleavedSource(tars), json.dumps(mmc4).encode(), ".json"),
        Kind(ParquetText(), packed_table(texts), ".parquet"),
        Kind(ParquetText("meta.text"), packed_table([{"meta": {"text": "t"}}] * 5, **plain), ".parquet"),
        Kind(ImageTextParquet(), packed_table(tables, **plain), ".parquet"),
        Kind(ConversationSource(store), packed_table(rows, compression="zstd"), ".parquet"),
        Kind(InterleavedSource(store), packed_table(obelics, **plain), ".parquet"),
    ]


def mutated(content: bytes, other: bytes, draw: random.Random) -> bytes:
    """`content` changed in a few places."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        place = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 2, 4, draw.randrange(64), draw.randrange(len(changed) + 1)))
        match draw.randrange(8):
            case 0 if changed:
                changed[place % len(changed)] ^= 1 << draw.randrange(8)
            case 1 if changed:
                changed[place % len(changed)] = draw.randrange(256)
            case 2:
                del changed[place:]
            case 3:
                del changed[place : place + length]
            case 4:
                begin = draw.randrange(len(other) + 1)
                changed[place : place + length] = other[begin : begin + length]
            case 5:
                changed[place:place] = changed[place : place + length] * draw.choice((1, 2, 50 if length < 64 else 1))
            case 6:
                changed[place : place + length] = draw.randbytes(length)
            case _:
                odd = draw.choice(ODD)
                changed[place : place + draw.choice((0, len(odd)))] = odd
    return bytes(changed)


def check_outcome(outcome: Record | Rejection, path: str) -> None:
    """Whether its fields are what they are said to be."""
    outcome.key.encode()  # it can be written down
    assert type(outcome.offset) is int
    assert outcome.offset >= 0
    if isinstance(outcome, Rejection):
        assert outcome.file == path
        assert isinstance(outcome.reason, Reason)
        assert isinstance(outcome.detail, str)
        assert outcome.detail
        return
    assert isinstance(outcome, Record)
    assert outcome.documents
    for document in outcome.documents:
        assert isinstance(document, tuple)
        assert document
        for part in document:
            if isinstance(part, Text):
                assert part.text.encode()
            else:
                assert isinstance(part, Picture)
                assert type(part.encoded) is bytes
                found = check_picture(part.encoded, thorough=False)
                assert isinstance(found, PictureHeader) or (isinstance(found[0], Reason) and found[1])


def run_input(kinds: list[Kind], number: int, folder: Path) -> str:
    """Read input `number`, which is of the kind that its remainder says; what came of it, in a word."""
    draw = random.Random(number)
    kind, other = kinds[number % len(kinds)], draw.choice(kinds).sound
    if kind.pack and draw.random() < 0.5:
        stored = PACKS[kind.pack](mutated(kind.sound, other, draw))
    else:
        stored = mutated(PACKS[kind.pack](kind.sound), other, draw)
    path = folder / f"mutated{kind.suffix}{kind.pack}"
    path.write_bytes(stored)
    target = draw.choice((50, 500, 1 << 30))
    begin = time.process_time()
    try:
        units = kind.source.units(str(path), len(stored), target)
    except DataError as error:
        return "refused" if str(path) in str(error) else f"refused without a name: {error}"
    records = rejections = 0
    assert sum(unit.size for unit in units) == len(stored)
    for unit in units:
        reached = 0
        for count, outcome in enumerate(kind.source.read(unit)):
            check_outcome(outcome, str(path))
            assert outcome.number == count
            assert reached <= outcome.bytes_read <= unit.size
            reached = outcome.bytes_read
            records += isinstance(outcome, Record)
            rejections += isinstance(outcome, Rejection)
    assert time.process_time() - begin < LONGEST_SECONDS
    return "both" if records and rejections else "records" if records else "rejections" if rejections else "nothing"


def run_inputs(kinds: list[Kind], numbers: range, folder: Path) -> Counter[str]:
    """What came of them: how often which."""
    outcomes: Counter[str] = Counter()
    for number in numbers:
        try:
            outcomes[run_input(kinds, number, folder)] += 1
        except Exception as error:
            name = kinds[number % len(kinds)].name
            raise AssertionError(f"input {number}, {name}: {type(error).__name__}: {error}") from error
    return outcomes


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Kind]:
    return make_kinds(tmp_path_factory.mktemp("pictures"))


def test_sound_files_are_read_whole(kinds: list[Kind], tmp_path: Path) -> None:
    for kind in kinds:
        path = tmp_path / f"sound{kind.suffix}{kind.pack}"
        path.write_bytes(PACKS[kind.pack](kind.sound))
        outcomes = [o for unit in kind.source.units(str(path), path.stat().st_size, 1) for o in kind.source.read(unit)]
        assert len(outcomes) >= 3, kind.name
        if not (isinstance(kind.source, JsonLines) and kind.source.key == "meta.text"):
            assert all(isinstance(outcome, Record) for outcome in outcomes), (kind.name, outcomes)


def test_damaged_files_never_raise(kinds: list[Kind], tmp_path: Path) -> None:
    outcomes = run_inputs(kinds, range(FAST_INPUTS), tmp_path)
    assert set(outcomes) <= {"refused", "both", "records", "rejections", "nothing"}, outcomes
    # damage that is never noticed, or always everything, would be no damage to test with
    assert min(outcomes["both"], outcomes["records"], outcomes["rejections"]) > FAST_INPUTS // 20, outcomes


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_many_damaged_files_never_raise(kinds: list[Kind], tmp_path: Path, part: int) -> None:
    size = SLOW_INPUTS // 10
    outcomes = run_inputs(kinds, range(part * size, (part + 1) * size), tmp_path)
    assert outcomes.total() == size
    assert set(outcomes) <= {"refused", "both", "records", "rejections", "nothing"}, outcomes
