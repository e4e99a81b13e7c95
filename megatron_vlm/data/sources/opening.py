"""Which files some patterns mean, and opening them: local paths, or URLs that fsspec knows."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vlm.data.sources.decompression import BUFFER_BYTES, Damaged, decompressed
from megatron_vlm.data.sources.file_names import is_remote
from megatron_vlm.errors import DataError

__all__ = ["Damaged", "InputFile", "decompressed", "expand_inputs", "file_sha256", "input_file", "is_remote", "open_input"]

HASHED_AT_ONCE = 4 << 20  # a thread asks for Python's lock after each, and may wait milliseconds for it
REMOTE_BLOCK_BYTES = 8 << 20  # what one request fetches ahead
#: what a file system may say that changes with a file's content, best first
_STAMPS = ("ETag", "etag", "md5", "md5Hash", "blob_id", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file to read.

    Attributes:
        url: path of a local file, or what fsspec opens ("s3://bucket/key").
        size: bytes, as it is stored.
        stamp: changes when the file does: its time of modification, or the store's entity tag.
    """

    url: str
    size: int
    stamp: str


def expand_inputs(patterns: Iterable[str]) -> list[InputFile]:
    """The files that names, URLs and glob patterns ("**" crosses folders) stand for.

    A name that exists is taken as it is: it may contain brackets. "@list.txt" stands for the patterns that this file lists,
    one a line; empty lines and ones that begin with "#" are passed over, and relative names are relative to the current
    folder, as if they were given in its place. Patterns keep their order, files within a pattern are sorted by name, and a
    file named twice is taken once, by the first of its names, also where the other is absolute or leads through a link; so
    the same arguments always give the same list.

    Raises:
        DataError: a pattern that matches no file, a name that is a folder, a list that cannot be read or lists itself, a
            URL whose packages are not installed, or whose store does not answer.
    """
    files: dict[str, InputFile] = {}
    for pattern in patterns:
        for file in _expand(pattern, ()):
            files.setdefault(file.url if is_remote(file.url) else os.path.realpath(file.url), file)
    return list(files.values())


def _expand(pattern: str, lists: tuple[str, ...]) -> Iterator[InputFile]:
    if pattern.startswith("@"):
        if pattern in lists:
            raise DataError(f"{pattern[1:]} lists itself ({' in '.join((pattern, *lists[::-1]))}); remove that line")
        for line in _listed(pattern[1:]):
            yield from _expand(line, (*lists, pattern))
        return
    found = list(_expand_remote(pattern) if is_remote(pattern) else _expand_local(pattern))
    if not found:
        raise DataError(f"no input file matches {pattern!r}; check the path, and quote patterns for the shell")
    yield from found


def _listed(url: str) -> list[str]:
    with open_input(url) as stream:
        content = stream.read()
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{url} is no list of inputs in UTF-8 ({error}); it should name one pattern a line") from error
    return [name for line in lines if (name := line.strip()) and not name.startswith("#")]


def _expand_local(pattern: str) -> Iterator[InputFile]:
    if os.path.isdir(pattern):
        raise DataError(f"{pattern} is a folder; name the files in it, such as {os.path.join(pattern, '**', '*.jsonl')!r}")
    for match in [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True)):
        if os.path.isfile(match):
            yield input_file(str(Path(match)))


def _expand_remote(pattern: str) -> Iterator[InputFile]:
    with _remote_errors(pattern):
        file_system, path = _file_system(pattern)
        try:
            # not isdir(): over HTTP that would download the file to look for links in it
            info = file_system.info(path)
        except FileNotFoundError:
            info = None
        if info is not None and info.get("type") == "directory":
            raise DataError(f"{pattern} is a folder; name the files in it, such as {pattern.rstrip('/') + '/**/*.jsonl'!r}")
        if info is not None:
            yield _remote_file(pattern, info)
        elif glob.has_magic(path):
            # As the pattern is spelt: with the user and the host that some stores' names go without.
            before = pattern.removesuffix(path) if pattern.endswith(path) else None
            for name, info in sorted(file_system.glob(path, detail=True).items()):
                if info.get("type") != "directory":
                    url = file_system.unstrip_protocol(name) if before is None else before + name
                    yield _remote_file(url, info if info.get("size") is not None else file_system.info(name))


def input_file(url: str) -> InputFile:
    """The file at `url`, with its size and stamp as they are now. Raises DataError where there is none."""
    if is_remote(url):
        with _remote_errors(url):
            file_system, path = _file_system(url)
            return _remote_file(url, file_system.info(path))
    try:
        status = os.stat(url)
    except OSError as error:
        raise DataError(f"{url} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{url} is a folder, not a file")
    return InputFile(url, status.st_size, f"mtime_ns={status.st_mtime_ns}")


def _remote_file(url: str, info: dict[str, Any]) -> InputFile:
    size = info.get("size")
    if size is None:
        raise DataError(f"{url}: its server does not say how large it is; download the file and name the copy")
    stamp = next((f"{name}={info[name]}" for name in _STAMPS if info.get(name)), f"size={size}")
    return InputFile(url, int(size), stamp)


def open_input(url: str) -> io.BufferedReader:
    """A file for reading, as it is stored; buffered, and seekable where it is local or its store serves ranges.

    Reading raises DataError where the disk or the network fails: that says nothing of what is in the file.

    Raises:
        DataError: the file is not there or may not be read, or what opens its URL is not installed.
    """
    return io.BufferedReader(_open_raw(url), BUFFER_BYTES)


@contextmanager
def open_decompressed(url: str) -> Iterator[tuple[io.BufferedReader, Callable[[], int]]]:
    """The decompressed content of a file, and what tells how many bytes of the file have been read for it, ahead included.

    Reading raises `Damaged` as `decompressed` says, and DataError as `open_input` says.
    """
    raw = _open_raw(url)  # it counts: asking a buffered file for its place is a system call
    stored: io.BufferedReader = io.BufferedReader(raw, BUFFER_BYTES)
    with stored:
        yield decompressed(stored, url), lambda: raw.taken


def go_to(stream: io.BufferedReader, offset: int) -> None:
    """Move on to `offset`, by reading where a stream at its beginning cannot seek: of a server that gives no ranges."""
    if stream.seekable():
        stream.seek(offset)
        return
    while offset and (passed := len(stream.read(min(offset, BUFFER_BYTES)))):
        offset -= passed


def file_sha256(url: str | Path) -> str:
    """sha256 of a file's bytes as they are stored, in hex."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(HASHED_AT_ONCE))
    with _open_raw(str(url)) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


class _LocalFile(io.FileIO):
    taken = 0  # bytes that have been read

    def readinto(self, buffer: Any) -> int:
        try:
            count = super().readinto(buffer) or 0
        except OSError as error:
            raise DataError(f"{self.name} cannot be read: {error.strerror or error}") from error
        self.taken += count
        return count


class _RemoteFile(io.RawIOBase):
    """A file of fsspec, whose errors name it, whatever package they come from."""

    taken = 0  # bytes that have been read

    def __init__(self, url: str) -> None:
        self._url = url
        with _remote_errors(url):
            file_system, path = _file_system(url)
            self._file = file_system.open(path, "rb", block_size=REMOTE_BLOCK_BYTES, cache_type="readahead")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        with _remote_errors(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        self.taken += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _remote_errors(self._url):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _open_raw(url: str) -> _LocalFile | _RemoteFile:
    try:
        return _RemoteFile(url) if is_remote(url) else _LocalFile(url)
    except OSError as error:
        raise DataError(f"{url} cannot be opened: {error.strerror or error}") from error


def _file_system(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise DataError(f"{url}: URLs are read through fsspec; `pip install 'megatron_vlm[remote]'` installs it") from error
    try:
        file_system, path = url_to_fs(url)
    except ImportError as error:
        raise DataError(
            f"{url}: {error}; `pip install 'megatron_vlm[remote]'` installs what the common stores need"
        ) from error
    except ValueError as error:  # a scheme that fsspec has never heard of
        raise DataError(f"{url}: {error}; a local path has no '://'") from error
    return file_system, path


@contextmanager
def _remote_errors(url: str) -> Iterator[None]:
    """DataError naming `url` in place of what a store's package raises."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{url} does not exist, or may not be seen") from error
    except Exception as error:  # each package has its own: botocore's, aiohttp's, Google's
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{url} cannot be read ({what}); check access and network, and run again") from error
