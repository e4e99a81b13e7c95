"""Files that are either wholly there or not there: written aside, flushed to disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def partial_path(final: Path) -> Path:
    """Where `final` is written until it is whole: the same folder, so that the rename is atomic."""
    return final.with_name(final.name + ".partial")


def commit(final: Path) -> None:
    """Flush the partial file of `final` to disk and give it its name, replacing what had it before."""
    partial = partial_path(final)
    sync_file(partial)
    os.replace(partial, final)
    sync_folder(final.parent)


def commit_together(finals: Sequence[Path], stale: Iterable[Path] = ()) -> None:
    """Give several partial files their names, so that the last one is never there beside files of another writing.

    `stale` are removed: they were of what is replaced. What a full disk may stop is done before anything is touched.

    Raises OSError.
    """
    for final in finals:
        sync_file(partial_path(final))
    finals[-1].unlink(missing_ok=True)
    for path in stale:
        path.unlink(missing_ok=True)
    for final in finals:
        commit(final)


def discard(final: Path) -> None:
    """Remove the partial file of `final`, if there is one; `final` itself is left as it was."""
    partial_path(final).unlink(missing_ok=True)


def write_aside(final: Path, text: str) -> None:
    """Write `text` to the partial file of `final`, as UTF-8.

    Bytes of a file's name that are no UTF-8 are halves of surrogate pairs in a `str`, and UTF-8 has none: each is written as
    its escape, such as "\\udce9", which JSON and YAML read as the same name again.
    """
    partial_path(final).write_bytes(text.encode("utf-8", "backslashreplace"))


def write_text(final: Path, text: str) -> None:
    """Write `text` to `final` as `write_aside` does, atomically."""
    try:
        write_aside(final, text)
        commit(final)
    except BaseException:
        discard(final)
        raise


def sync_file(path: Path) -> None:
    """Flush a file's bytes to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut. Does nothing where folders cannot be flushed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to fsync a folder; the rename itself was still atomic
    finally:
        os.close(descriptor)
