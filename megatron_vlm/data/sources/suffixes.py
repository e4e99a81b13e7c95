"""The kinds of files that readers know, by the ends of their names."""

from __future__ import annotations

from megatron_vlm.data.sources.decompression import split_compression
from megatron_vlm.errors import DataError

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")
TAR_SUFFIXES = (".tar",)
TEXT_SUFFIXES = (".txt", ".text", ".md")


def known_suffix(url: str, known: tuple[str, ...], what: str) -> str:
    """Which of the suffixes `known` the file's name ends in, a compression left out. `what` is read from it, for the error.

    Raises DataError: it ends in none, in a compression that is not read, or it is compressed parquet.
    """
    name, compression = split_compression(url)
    found = next((suffix for suffix in known if name.endswith(suffix)), None)
    if found is None:
        raise DataError(
            f"{url}: its name does not say how to read {what}; known are {' '.join(known)}, and all but .parquet also with "
            "one of .gz .zst .bz2 .xz after it"
        )
    if found in PARQUET_SUFFIXES and compression:
        raise DataError(f"{url}: parquet is compressed within, and not read inside of {compression}; unpack it")
    return found


def is_tar(url: str) -> bool:
    """Also of a compressed one."""
    return split_compression(url)[0].endswith(TAR_SUFFIXES)


def is_parquet(url: str) -> bool:
    return split_compression(url)[0].endswith(PARQUET_SUFFIXES)
