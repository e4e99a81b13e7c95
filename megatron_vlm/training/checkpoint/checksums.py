"""checksums.json of a checkpoint: size and sha256 of each of its files, and what does not agree with them.

::

    {"algorithm": "sha256", "block_bytes": 67108864, "files": {"__0_0.distcp": {"size": 123, "sha256": [hex, ...]}, ...}}

with a digest for each `block_bytes` of a file, the last block shorter. Blocks are what ranks and threads share when a
checkpoint is verified, and they say where a file is damaged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from megatron_vlm.data.checksums import ALGORITHM, BLOCK_BYTES, block_digest, blocks_of, file_digests

CHECKSUM_FILE = "checksums.json"


class FileChecksum(TypedDict):
    """Size in bytes, and a hex digest for each block."""

    size: int
    sha256: list[str]


def checksum_of(path: Path) -> FileChecksum:
    """Read and hash a file. Raises OSError where it cannot be read."""
    return {"size": path.stat().st_size, "sha256": file_digests(path)}


def checksum_text(files: dict[str, FileChecksum]) -> str:
    """What checksums.json says of `files`, by name inside the checkpoint."""
    return json.dumps({"algorithm": ALGORITHM, "block_bytes": BLOCK_BYTES, "files": files})


def read_checksums(checkpoint: Path) -> tuple[int, dict[str, FileChecksum]]:
    """Bytes of a block, and the checksums by name.

    Raises:
        OSError: there is no checksums.json, or it cannot be read.
        ValueError: it is not one; says so.
    """
    stored = json.loads((checkpoint / CHECKSUM_FILE).read_text(encoding="utf-8"))
    try:
        block_bytes, files = int(stored["block_bytes"]), stored["files"]
        known = stored["algorithm"] == ALGORITHM and block_bytes > 0
        shaped = all(isinstance(one["size"], int) and isinstance(one["sha256"], list) for one in files.values())
    except (AttributeError, KeyError, TypeError):
        raise ValueError("it is no table of checksums") from None
    if not (known and shaped):
        raise ValueError("it is no table of sha256 checksums")
    return block_bytes, files


def size_damage(checkpoint: Path) -> str | None:
    """The first file that is missing or has another size than was written, without reading it; None if there is none.

    A checkpoint without checksums.json is not judged.
    """
    try:
        _, files = read_checksums(checkpoint)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"{CHECKSUM_FILE} cannot be read ({error})"
    return next(_wrong_sizes(checkpoint, files), None)


def _wrong_sizes(checkpoint: Path, files: dict[str, FileChecksum]) -> Iterator[str]:
    for name, expected in files.items():
        try:
            size = (checkpoint / name).stat().st_size
        except OSError as error:
            yield f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name} cannot be read ({error})"
            continue
        if size != expected["size"]:
            yield f"{name} has {size} bytes, {expected['size']} were written"


def content_damage(checkpoint: Path, part: int = 0, parts: int = 1, workers: int | None = None) -> list[str]:
    """Read and hash the blocks `part`, `part + parts`, ... of a checkpoint; what is wrong, a sentence a file or block.

    Sizes of all files are compared by every part. `workers` threads, by default the cores.
    """
    try:
        block_bytes, files = read_checksums(checkpoint)
    except FileNotFoundError:
        return [f"{CHECKSUM_FILE} is missing (--checkpoint.verify false loads it unchecked)"]
    except (OSError, ValueError) as error:
        return [f"{CHECKSUM_FILE} cannot be read ({error})"]
    found = list(_wrong_sizes(checkpoint, files))
    found += [
        f"{CHECKSUM_FILE} has {len(one['sha256'])} digests of {name}, not one for each block"
        for name, one in files.items()
        if len(one["sha256"]) != len(blocks_of(one["size"], block_bytes))
    ]
    if found:
        return found
    blocks = [
        (name, block, digest)
        for name, expected in sorted(files.items())
        for block, digest in zip(blocks_of(expected["size"], block_bytes), expected["sha256"], strict=True)
    ]

    def check(entry: tuple[str, range, str]) -> str | None:
        name, block, digest = entry
        try:
            descriptor = os.open(checkpoint / name, os.O_RDONLY)
            try:
                same = block_digest(descriptor, block) == digest
            finally:
                os.close(descriptor)
        except (OSError, EOFError) as error:
            return f"{name} cannot be read ({error})"
        return None if same else f"{name} is damaged: its bytes {block.start} to {block.stop} have another sha256"

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return [problem for problem in pool.map(check, blocks[part::parts]) if problem]
