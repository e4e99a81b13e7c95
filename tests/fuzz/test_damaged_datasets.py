"""Whatever becomes of the bytes of a dataset, what reads it says so: DataError or a finding, and nothing else."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.data.checksums import describe_checksums, file_digests
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_views import IndexedViews
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.validation import validate_dataset
from megatron_vlm.errors import DataError
from megatron_vlm.ops.assemble_spans import assemble_spans
from megatron_vlm.ops.native import native_operators

TOKENS = TokenCounts(vocab_size=300, eod_id=0, image_token_id=1, pad_id=2)
NUMBERS = [0, 1, 2, 7, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
READ = 24  # sequences and documents of each dataset

SUFFIXES = (".idx", ".bin", ".sequences.npy", ".json")
Files = tuple[bytes, bytes, bytes | None, bytes | None]  # of each suffix; the last two may be missing


def write(prefix: Path, rng: random.Random, dtype: type[np.generic], multimodal: bool) -> Files:
    rows = []
    with IndexedWriter(prefix, dtype, multimodal) as writer:
        for number in range(rng.randint(0, 9)):
            for _ in range(rng.randint(0, 3)):
                if multimodal and rng.random() < 0.4:
                    stream = io.BytesIO()
                    Image.new("RGB", (rng.randint(1, 9), 3), (number, 2, 3)).save(
                        stream, rng.choice(["JPEG", "PNG", "WEBP"])
                    )
                    writer.add_image(stream.getvalue())
                    rows.append((3, 9))
                else:
                    rows.append((1, 0))
                    writer.add_text([rng.randint(3, 120) for _ in range(rng.randint(0, 12))])
            writer.end_document()
    index, data, sidecar, metadata = (Path(f"{prefix}{suffix}") for suffix in SUFFIXES)
    np.save(sidecar, np.array(rows, "<i4").reshape(-1, 2))
    digests = {"bin": file_digests(data), "idx": file_digests(index), "sequences": file_digests(sidecar)}
    metadata.write_text(json.dumps({"vocab_size": 300, "documents": 5, "checksums": describe_checksums(digests)}))
    return index.read_bytes(), data.read_bytes(), sidecar.read_bytes(), metadata.read_bytes()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Files]:
    """Some sound datasets of every dtype."""
    folder, rng = tmp_path_factory.mktemp("sound"), random.Random(0)
    dtypes = (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64)
    return [write(folder / f"{i}", rng, dtypes[i % 6], i % 3 != 0) for i in range(24)]


def mutate(rng: random.Random, content: bytes, other: bytes, header: bool) -> bytes:
    """One to three things that go wrong with a file."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(changed) + 1)
        way = rng.randrange(8 if header else 6)
        if way == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            changed[at : at + rng.randint(1, 9)] = rng.randbytes(rng.randint(1, 9))
        elif way == 2:
            del changed[at:]
        elif way == 3:
            del changed[at : at + rng.randint(1, 40)]
        elif way == 4:
            start = rng.randrange(len(other) + 1)
            changed[at:at] = other[start : start + rng.randint(1, 40)]
        elif way == 5:
            changed[at : at + 8] = rng.choice(NUMBERS).to_bytes(8, "little")
        elif way == 6 and len(changed) >= 34:
            field, form = rng.choice([(9, "<Q"), (17, "<B"), (18, "<Q"), (26, "<Q")])
            small = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 255])
            struct.pack_into(form, changed, field, small if form == "<B" else rng.choice([*NUMBERS, small]))
        elif way == 7 and len(changed) > 42:
            width = rng.choice([4, 8])  # an entry of a column
            place = 34 + width * rng.randrange((len(changed) - 34) // width)
            value = rng.choice([*NUMBERS, -1, -8, rng.randint(0, 100)]) % 2 ** (8 * width)
            changed[place : place + width] = value.to_bytes(width, "little")
    return bytes(changed)


def damaged(originals: list[Files], count: int) -> Iterator[tuple[int, Files]]:
    """(seed, files), the same for every run."""
    for seed in range(count):
        rng = random.Random(seed)
        index, data, sidecar, metadata = rng.choice(originals)
        other = rng.choice(rng.choice(originals)) or b""
        which = rng.randrange(10)
        if which < 7:
            index = mutate(rng, index, other, header=True)
        if which > 5:
            data = mutate(rng, data, other, header=False)
        if sidecar and rng.random() < 0.5:
            sidecar = mutate(rng, sidecar, other, header=False)
        if metadata and rng.random() < 0.5:
            metadata = mutate(rng, metadata, other, header=False)
        # without one or both, as datasets of other tools are
        yield seed, (index, data, sidecar if rng.random() < 0.3 else None, metadata if rng.random() < 0.3 else None)


def read_all(reader: IndexedReader) -> None:
    for document in range(min(reader.document_count, READ)):
        try:
            assert len(reader.document_sequences(document)) <= reader.sequence_count
        except DataError:
            continue
    for sequence in range(min(reader.sequence_count, READ)):
        try:
            if reader.modes[sequence]:
                reader.image_bytes(sequence)
            else:
                int(reader.tokens(sequence).sum())
        except DataError:
            continue


def read_as_training_does(reader: IndexedReader, verified: bool) -> None:
    """Through the native operator, which looks at every place itself: it is given an unverified index, too."""
    native = native_operators()
    assert native is not None
    if verified:
        source = DocumentSource("d", reader, TOKENS, 2)
        indexed = source.indexed_at(2)
        for document in source.usable_documents()[:READ].tolist():
            try:
                source.ids(document, 0, 3)
            except DataError:
                continue
    else:
        indexed = IndexedViews(reader, None).at(2)
    assert indexed is not None
    ids = {"image_token_id": 1, "pad_id": 2, "eod_id": 0, "vocab_size": 300}
    for document in range(min(reader.document_count, 4)):
        spans = np.array([[0, document, document % 2, 2]], np.int64)
        try:
            assemble_spans(native, [indexed], spans, np.array([1], np.int64), sequence_length=4, **ids)
        except ValueError as refused:
            if ", document " not in str(refused):
                raise


def examine(folder: Path, files: Files) -> tuple[bool, bool]:
    """Read damaged files in every way; whether they could be opened, and whether they were found sound."""
    prefix = folder / "d"
    for suffix, content in zip(SUFFIXES, files, strict=True):
        path = folder / f"d{suffix}"
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(content)
    sound = validate_dataset(prefix, workers=1).sound
    opened = True
    for verify in (True, False):
        try:
            reader = IndexedReader(prefix, verify=verify)
        except DataError:
            opened = opened and not verify
            continue
        read_all(reader)
        try:
            read_as_training_does(reader, verify)
            reader.document_text_tokens()
            reader.document_images()
        except DataError:
            continue
    return opened, sound


def run(originals: list[Files], folder: Path, count: int) -> None:
    opened = found = 0
    for seed, files in damaged(originals, count):
        try:
            could_open, sound = examine(folder, files)
        except BaseException as error:  # the seed is what one needs to look at it
            error.add_note(f"seed {seed}: {dict(zip(SUFFIXES, files, strict=True))}")
            raise
        opened += could_open
        found += not sound
        # what cannot be opened is never called sound
        assert could_open or not sound, seed
    # most damage is such that a reader refuses it, some such that only what it holds is wrong
    assert 0.05 * count < opened < 0.8 * count
    assert found > 0.6 * count


def test_damaged_datasets(originals: list[Files], tmp_path: Path) -> None:
    run(originals, tmp_path, 1000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_damaged_datasets(originals: list[Files], tmp_path: Path) -> None:
    run(originals, tmp_path, 100_000)
