"""Documents of a dataset as a person reads them: text with its line breaks, a line for each picture."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import DataError

SHOWN_IDS = 16
#: what would move a terminal's cursor or change its colours, what turns the reading direction around, and bytes of a file's
#: name that are no text
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ShownPart:
    """A sequence of a document.

    Attributes:
        role: "image"; for text "learnt" or "read" where the dataset says which, else "text".
        text: what it says, or what kind of picture it is.
        tokens: of text; 0 for a picture.
    """

    role: str
    text: str
    tokens: int


def shown_parts(
    reader: IndexedReader, document: int, tokenizer: Tokenizer | None, facts: npt.NDArray[np.int32] | None
) -> Iterator[ShownPart]:
    """The parts of a document in reading order; without a tokenizer, ids stand for text.

    Raises DataError for ids that the tokenizer does not have.
    """
    for sequence in reader.document_sequences(document):
        if reader.modes[sequence]:
            yield ShownPart("image", picture_line(reader.image_bytes(sequence)), 0)
            continue
        role = "text" if facts is None else ("learnt" if facts[sequence, 0] else "read")
        ids = reader.tokens(sequence)
        yield ShownPart(role, shown_text(reader, document, ids, tokenizer), len(ids))


def shown_text(reader: IndexedReader, document: int, ids: npt.NDArray[Any], tokenizer: Tokenizer | None) -> str:
    """Decoded text, or the first ids; raises DataError for ids that the tokenizer does not have."""
    if tokenizer is None:
        more = " ..." if len(ids) > SHOWN_IDS else ""
        return f"{ids[:SHOWN_IDS].tolist()}{more}"
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocab_size:
        raise DataError(
            f"{reader.prefix}: document {document} has tokens {int(ids.min())} to {int(ids.max())}, and the tokenizer has "
            f"only {tokenizer.vocab_size}: give the one that the dataset was made with"
        )
    return tokenizer.decode(ids.tolist())


def picture_line(encoded: bytes) -> str:
    """Such as "[image 640x480 JPEG 24 kB]", of its header alone."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as picture:
                what = f"{picture.width}x{picture.height} {picture.format}"
    except Exception:  # Pillow raises whatever it likes on damaged headers
        what = "of no known form"
    return f"[image {what} {in_bytes(len(encoded))}]"


def in_bytes(size: int) -> str:
    """A size for a person: 812 B, 24 kB, 1.3 MB."""
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:.0f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"


def printable(text: str) -> str:
    """Text that does nothing to a terminal but show: control characters and halves of surrogate pairs become visible, line
    breaks and tabs stay."""
    return _CONTROL.sub(lambda found: _visible(ord(found.group())), text)


def _visible(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of control characters
    return "\u2421" if code == 0x7F else f"\\u{code:04x}"


def describe_document(number: int, parts: list[ShownPart]) -> str:
    """A document as lines: a heading, then each part with its role in the margin."""
    images, tokens = sum(part.role == "image" for part in parts), sum(part.tokens for part in parts)
    counted = [f"{images:,} image{'s' * (images != 1)}"] if images else []
    heading = f"document {number:,}: {', '.join([*counted, f'{tokens:,} tokens'])}"
    lines = [heading, "-" * len(heading)]
    for part in parts:
        shown = printable(part.text).split("\n")
        lines.append(f"{part.role:>6} | {shown[0]}")
        lines += [f"{'':>6} | {line}" for line in shown[1:]]
    return "\n".join(lines)
