"""Pictures of a folder by their paths in it, none of which may lead out of it."""

from __future__ import annotations

import os
import posixpath
import stat
from typing import BinaryIO

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.sources.file_names import is_remote
from megatron_vlm.data.sources.opening import open_input
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import DataError

LARGEST_PICTURE = 256 << 20


def folder_of(url: str) -> str:
    """The folder that a file lies in."""
    return posixpath.dirname(url) if is_remote(url) else os.path.dirname(url) or "."


def read_picture(folder: str, path: str, limit: int = LARGEST_PICTURE) -> bytes:
    """The bytes of the picture at `path` in a folder, which is local or a URL.

    Raises Unusable: a path that is absolute, has "..", or leads out of the folder through a symbolic link (ESCAPING_PATH);
    no such file, or one that cannot be read (MISSING_IMAGE); one of more than `limit` bytes (OVERSIZED_IMAGE).
    """
    if is_remote(path):
        raise Unusable(Reason.MISSING_IMAGE, f"{path!r} is an address, and pictures are not downloaded")
    if path.startswith(("/", "\\")) or ".." in path.replace("\\", "/").split("/"):
        raise Unusable(Reason.ESCAPING_PATH, f"{path!r} leads out of {folder}")
    content = _read_remote(folder, path, limit) if is_remote(folder) else _read_local(folder, path, limit)
    if len(content) > limit:
        raise Unusable(Reason.OVERSIZED_IMAGE, f"{path!r} has more than {limit:,} bytes")
    if not content:
        raise Unusable(Reason.MISSING_IMAGE, f"{path!r} is empty")
    return content


def _read_local(folder: str, path: str, limit: int) -> bytes:
    try:
        ground = os.path.realpath(folder)
        real = os.path.realpath(os.path.join(ground, path))
        if os.path.commonpath([ground, real]) != ground:
            raise Unusable(Reason.ESCAPING_PATH, f"{path!r} is a link that leads out of {folder}")
        # Without waiting: a pipe would never open. Nor through a link that has come up meanwhile.
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Unusable(Reason.MISSING_IMAGE, f"{path!r} is no file")
            return _read_all(stream, limit)
    except OSError as error:
        raise Unusable(Reason.MISSING_IMAGE, f"{path!r} in {folder}: {error.strerror or error}") from error
    except ValueError as error:  # a zero byte, or half of a surrogate pair
        raise Unusable(Reason.MISSING_IMAGE, f"{path!r} is no path: {error}") from error


def _read_remote(folder: str, path: str, limit: int) -> bytes:
    try:
        with open_input(f"{folder.rstrip('/')}/{path}") as stream:
            return _read_all(stream, limit)
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise Unusable(Reason.MISSING_IMAGE, str(error)) from error
        raise


def _read_all(stream: BinaryIO, limit: int) -> bytes:
    parts = []
    left = limit + 1
    while left and (part := stream.read(min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
