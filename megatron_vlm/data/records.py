"""What a source gives, whatever its format: records, each one document (or several) of texts and pictures in reading order.

Readers (`megatron_vlm.data.sources`) make these, one by one, from a `Unit`; the builder tokenises, filters and writes them.
Nothing here is decoded or tokenised yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from megatron_vlm.data.quarantine import Rejection


# Text, Picture and Record are made once for each of millions of texts, so not frozen: that takes twice as long. Nothing
# changes one all the same.
@dataclass(slots=True, unsafe_hash=True)
class Text:
    """A run of text.

    Attributes:
        text: what it says; encoded as it is, so that data cannot spell a special token.
        learnt: False for what a model reads and is not trained to say, such as a user's turn.
        special: `text` is the exact name of one special token of the tokenizer ("<|im_start|>"): a chat template's.
    """

    text: str
    learnt: bool = True
    special: bool = False


@dataclass(slots=True, unsafe_hash=True)
class Picture:
    """A picture as it is encoded: the whole bytes of a .jpg, .png or .webp file."""

    encoded: bytes


Part: TypeAlias = Text | Picture
Document: TypeAlias = tuple[Part, ...]


@dataclass(slots=True, unsafe_hash=True)
class Record:
    """One record of a source.

    Attributes:
        key: what names it, such as "000000012" or an id of its own; "" where only its number does.
        offset: where it is in the file, for a person who looks for it: bytes (of the decompressed text where the file is
            compressed), or rows in parquet.
        documents: usually one; several where each caption of a picture makes one.
        bytes_read: how much of the unit's `size` has been read up to here, for a progress bar.
        number: counted from 0 in the unit, records that are rejected included; the builder adds those of the units before.
        absent: where pictures that it names would lie in a folder, and are not; once one is there, the record is another.
    """

    key: str
    offset: int
    documents: tuple[Document, ...]
    bytes_read: int
    number: int
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a file that one worker reads: all of it, or a range that is cut where records end.

    Attributes:
        url: path of a local file, or what fsspec opens ("s3://bucket/key").
        start, stop: bytes of an uncompressed line file, a line belongs to the unit in which it begins; row groups in
            parquet; (0, 1) for a whole file.
        size: bytes of the file that this is, for a progress bar.
    """

    url: str
    start: int
    stop: int
    size: int


class Source(Protocol):
    """A format: how its files are cut, and what is in a unit. Instances are small, frozen and picklable."""

    def units(self, url: str, size: int, target: int) -> Sequence[Unit]:
        """Cut a file of `size` bytes into units of about `target` bytes, as far as its format allows; in order, without
        gaps. Raises DataError for a file that is not of this format at all."""
        ...

    def read(self, unit: Unit) -> Iterator[Record | Rejection]:
        """The records of a unit, in order. Never raises for what is in the file: what cannot be used comes as a
        `Rejection`, and the rest of a file that cannot be read further as one with Reason.BROKEN_FILE."""
        ...
