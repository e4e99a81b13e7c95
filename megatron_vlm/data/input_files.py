"""Which files a list of patterns means, and what is in them."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable
from pathlib import Path

from megatron_vlm.errors import DataError


def expand_inputs(patterns: Iterable[str]) -> list[Path]:
    """The files that names and glob patterns ("**" crosses folders) stand for.

    Patterns keep their order, files within a pattern are sorted by name, and a file named twice is taken
    once, so the same arguments always give the same list. Raises DataError for a pattern that matches no
    file.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        # A name that exists is taken as it is: it may contain brackets.
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise DataError(f"no input file matches {pattern!r}; check the path, and quote patterns for the shell")
        files.update(dict.fromkeys(found))
    return list(files)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
