"""Text documents out of .jsonl files, plain or compressed: one JSON object a line, one document an object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_vlm.data.compressed_lines import DAMAGE, read_lines
from megatron_vlm.data.quarantine import Reason, Rejection


@dataclass(frozen=True, slots=True)
class TextRecord:
    """One text document. `key` is "line N", counted from 1; `position` is the bytes of the file read so
    far.
    """

    file: Path
    key: str
    text: str
    position: int

    @property
    def size(self) -> int:
        """How much it weighs in a batch, in characters."""
        return len(self.text)


def read_text_file(path: Path, key: str = "text") -> Iterator[TextRecord | Rejection]:
    """Yield the document in field `key` of each line of a .jsonl, .jsonl.gz or .jsonl.zst file, in order.

    Lines that hold nothing but white space are no records. A line that cannot be used, and the rest of a file
    that cannot be decompressed, come as a `Rejection`.
    """
    number, position = 0, 0
    try:
        for number, (position, line) in enumerate(read_lines(path), start=1):
            if line and not line.isspace():
                yield _read_record(path, number, position, line, key)
    except DAMAGE as error:
        yield Rejection(path, f"after line {number}", Reason.BROKEN_FILE, str(error), position)


def _read_record(path: Path, number: int, position: int, line: bytes, key: str) -> TextRecord | Rejection:
    name = f"line {number}"

    def rejected(reason: Reason, detail: str) -> Rejection:
        return Rejection(path, name, reason, detail, position)

    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        return rejected(Reason.INVALID_UNICODE, str(error))
    except (ValueError, RecursionError) as error:
        return rejected(Reason.BROKEN_JSON, str(error))
    if not isinstance(record, dict):
        return rejected(Reason.BROKEN_JSON, f"a {type(record).__name__} where an object is expected")
    if key not in record or record[key] is None:
        return rejected(Reason.MISSING_TEXT, f"no field {key!r}; it has {', '.join(map(repr, record)) or 'none'}")
    text = record[key]
    if not isinstance(text, str):
        return rejected(Reason.MISSING_TEXT, f"field {key!r} is a {type(text).__name__}, not a string")
    if not text.strip():
        return rejected(Reason.EMPTY_TEXT, f"field {key!r} is empty")
    if not is_encodable(text):
        return rejected(Reason.INVALID_UNICODE, f"field {key!r} has half of a surrogate pair")
    return TextRecord(path, name, text, position)


def is_encodable(text: str) -> bool:
    """Whether `text` is Unicode that can be written as UTF-8; JSON can spell lone surrogates, which
    cannot.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
