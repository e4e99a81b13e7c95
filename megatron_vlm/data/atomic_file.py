"""Files that are either wholly there or not there: written aside, flushed to disk, then renamed."""

from __future__ import annotations

import os
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


def discard(final: Path) -> None:
    """Remove the partial file of `final`, if there is one; `final` itself is left as it was."""
    partial_path(final).unlink(missing_ok=True)


def write_text(final: Path, text: str) -> None:
    """Write `text` to `final` as UTF-8, atomically."""
    try:
        partial_path(final).write_text(text, encoding="utf-8", newline="\n")
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
