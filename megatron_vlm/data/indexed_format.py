"""The bytes of Megatron's indexed dataset, apart from any reading or writing of files.

A dataset is two files beside each other, NAME.bin and NAME.idx, both little-endian.

NAME.idx, by byte offset::

    0   9 bytes    b"MMIDIDX\\0\\0"
    9   u64        version, 1
    17  u8         dtype code of the elements in NAME.bin (see `DTYPE_OF_CODE`)
    18  u64        N, the number of sequences
    26  u64        D + 1, the number of entries in the document index
    34  i32[N]     sequence lengths, in elements
        i64[N]     sequence pointers, in bytes from the start of NAME.bin
        i64[D+1]   document index: first sequence of each document, then N
        i8[N]      sequence modes, 0 text and 1 image: only in multimodal datasets

No field says whether the modes are there: a file that is N bytes longer than the rest of it has them.

NAME.bin is the sequences, one after another, all of one dtype. An image sequence is one element that counts
the pad bytes, then the encoded picture (the bytes of the .jpg or .png file) padded with zero bytes to a whole
element.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, N, D + 1

TEXT_MODE = 0
IMAGE_MODE = 1

#: Megatron's own numbering; the float codes exist there but hold neither tokens nor pictures
DTYPE_OF_CODE: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
CODE_OF_DTYPE: dict[np.dtype[Any], int] = {dtype: code for code, dtype in DTYPE_OF_CODE.items()}

#: Megatron's `DType.optimal_dtype`: vocabularies below this size are stored in 16 bits
SMALL_VOCABULARY = 65500


@dataclass(frozen=True, slots=True)
class IndexedPaths:
    """The files of one dataset. Only `data` and `index` are Megatron's; the others are this package's."""

    data: Path
    index: Path
    metadata: Path
    quarantine: Path
    sequences: Path  # a row a sequence: what is known of it without decoding (see `sequence_facts`)


def dataset_paths(prefix: Path | str) -> IndexedPaths:
    """Names of the files of the dataset at `prefix`, which may itself contain dots ("pile.v2").

    Raises DataError when the last part of `prefix` is no name, as in ".", ".." and "/".
    """
    prefix = Path(prefix)
    if prefix.name in ("", ".."):
        raise DataError(f"{prefix} names no dataset; give a path without suffix, like {prefix / 'train'}")
    suffixes = (".bin", ".idx", ".json", ".quarantine.jsonl", ".sequences.npy")
    return IndexedPaths(*(prefix.with_name(prefix.name + suffix) for suffix in suffixes))


def index_header(dtype: npt.DTypeLike, sequences: int, documents: int) -> bytes:
    """What an index begins with. `dtype` is one of those that the format has a code for."""
    return HEADER.pack(MAGIC, VERSION, CODE_OF_DTYPE[np.dtype(dtype)], sequences, documents + 1)


def index_size(sequences: int, document_entries: int, multimodal: bool) -> int:
    """Size in bytes of an .idx with `sequences` sequences and `document_entries` = D + 1 index entries."""
    return HEADER.size + 12 * sequences + 8 * document_entries + (sequences if multimodal else 0)


def text_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype that Megatron chooses for text alone: uint16 for small vocabularies, int32 otherwise."""
    return np.dtype("<u2") if vocab_size < SMALL_VOCABULARY else np.dtype("<i4")


def supported_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """`dtype` in the little-endian form that the format stores.

    Raises ValueError for a dtype that the format has no code for, or that holds no integers.
    """
    stored = np.dtype(dtype).newbyteorder("<")
    if stored not in CODE_OF_DTYPE:
        known = ", ".join(str(d) for d in CODE_OF_DTYPE)
        raise ValueError(f"an indexed dataset cannot hold {np.dtype(dtype)}; choose one of {known}")
    return stored


def encode_image_record(encoded: bytes, dtype: npt.DTypeLike) -> bytes:
    """The sequence that holds one encoded picture: pad count, the bytes, zero padding to a whole element.

    Returns bytes whose length is a multiple of the item size of `dtype`.
    """
    stored = supported_dtype(dtype)
    padding = -len(encoded) % stored.itemsize
    return np.array([padding], dtype=stored).tobytes() + encoded + bytes(padding)


def decode_image_record(record: npt.NDArray[Any]) -> bytes:
    """The encoded picture inside an image sequence, elements[L].

    Raises ValueError when the sequence cannot be an image record.
    """
    if record.size == 0:
        raise ValueError("it is empty, where even an empty picture has a pad count")
    padding = int(record[0])
    payload = record[1:].tobytes()
    if not 0 <= padding < record.dtype.itemsize or padding > len(payload):
        raise ValueError(f"its pad count is {padding}, with {len(payload)} bytes of {record.dtype} after it")
    return payload[: len(payload) - padding]
