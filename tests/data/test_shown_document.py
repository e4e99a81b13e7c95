"""Documents are shown as they read, and cannot play tricks on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.shown_document import describe_document, in_bytes, picture_line, printable, shown_parts
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import DataError


@pytest.fixture
def reader(tmp_path: Path, tokenizer: Tokenizer, make_picture: Callable[..., bytes]) -> IndexedReader:
    with IndexedWriter(tmp_path / "d", np.int32, multimodal=True) as writer:
        writer.add_text(tokenizer.encode("which\ncolour?"))
        writer.add_image(make_picture("JPEG", 64, 48))
        writer.add_text([*tokenizer.encode("a red square"), tokenizer.eod_id])
        writer.end_document()
        writer.add_text(range(30))
        writer.end_document()
    return IndexedReader(tmp_path / "d")


def test_a_conversation(reader: IndexedReader, tokenizer: Tokenizer) -> None:
    facts = np.array([[0, 0], [48, 64], [1, 0], [1, 0]], np.int32)
    parts = list(shown_parts(reader, 0, tokenizer, facts))
    size = in_bytes(len(reader.image_bytes(1)))
    tokens = sum(part.tokens for part in parts)
    heading = f"document 0: 1 image, {tokens} tokens"
    assert describe_document(0, parts).split("\n") == [
        heading,
        "-" * len(heading),
        "  read | which",
        "       | colour?",
        f" image | [image 64x48 JPEG {size}]",
        "learnt | a red square<|endoftext|>",
    ]
    assert tokens == int(reader.sequence_lengths[[0, 2]].sum())


def test_without_facts_and_tokenizer(reader: IndexedReader) -> None:
    assert [part.role for part in shown_parts(reader, 0, None, None)] == ["text", "image", "text"]
    (part,) = shown_parts(reader, 1, None, None)
    assert part.text == f"{list(range(16))} ..."


def test_ids_that_the_tokenizer_does_not_have(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with IndexedWriter(tmp_path / "d", np.int32) as writer:
        for wrong in (-1, tokenizer.vocab_size):
            writer.add_text([5, wrong])
            writer.end_document()
    for document in (0, 1):
        with pytest.raises(DataError, match=f"document {document} has tokens .* give the one"):
            list(shown_parts(IndexedReader(tmp_path / "d"), document, tokenizer, None))


def test_control_characters_only_show() -> None:
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("\x1b[31mred\x07\r\x7f") == "\u241b[31mred\u2407\u240d\u2421"
    assert printable("\u202egnp.exe\x9b") == "\\u202egnp.exe\\u009b"
    assert printable("caf\udce9") == "caf\\udce9"


def test_sizes() -> None:
    assert [in_bytes(size) for size in (0, 999, 1000, 24_400, 999_999, 1_300_000)] == [
        "0 B",
        "999 B",
        "1 kB",
        "24 kB",
        "1000 kB",
        "1.3 MB",
    ]
    assert picture_line(b"nothing") == "[image of no known form 7 B]"
