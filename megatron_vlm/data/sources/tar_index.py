"""Where the members of uncompressed tars are, by name: 36 bytes a member, so that millions fit in a worker's memory."""

from __future__ import annotations

import functools
import hashlib
import os
import posixpath
import tarfile
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.sources.file_names import inner_path, is_remote
from megatron_vlm.data.sources.opening import open_input
from megatron_vlm.errors import DataError

#: what `tarfile` raises on damaged headers; the last two from numbers in extended headers
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, ArithmeticError)


def member_digest(path: str, file_name: bool) -> bytes:
    """16 bytes that stand for a path in its plain form, or for its last part where `file_name`."""
    name = posixpath.basename(path) if file_name else path
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class TarIndex:
    """Files in tars, sorted by digest. One that a hard link stands for has the place of what it links to.

    Attributes:
        digests: S16 `[N]`, sorted.
        tars: int32 `[N]`, which of the tars it is in.
        offsets, sizes: int64 `[N]`, bytes.
        damage: a sentence for each tar that could not be read to its end.
    """

    digests: npt.NDArray[np.bytes_]
    tars: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    damage: tuple[str, ...] = ()

    def find(self, digest: bytes) -> tuple[int, int, int, int] | None:
        """(tar, byte at which it begins, bytes, how many there are of that name), or None where there is none."""
        wanted = np.array(digest, "S16")
        first = int(np.searchsorted(self.digests, wanted))
        after = int(np.searchsorted(self.digests, wanted, side="right"))
        if first == after:
            return None
        return int(self.tars[first]), int(self.offsets[first]), int(self.sizes[first]), after - first


def open_tar_index(tars: tuple[str, ...], file_name: bool = False) -> TarIndex:
    """The index of `tars`, by path or by `file_name` alone. Made once a process for tars that have not changed since.

    Raises DataError for one that is missing, or no uncompressed tar. One that is damaged further on gives what comes before.
    """
    return _index(tars, file_name, tuple(_signature(tar) for tar in tars))


def _signature(tar: str) -> tuple[int, int]:
    if is_remote(tar):
        return (0, 0)
    try:
        status = os.stat(tar)
    except OSError as error:
        raise DataError(f"{tar} cannot be read: {error.strerror}; check the path of the pictures") from None
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4)
def _index(tars: tuple[str, ...], file_name: bool, _: tuple[tuple[int, int], ...]) -> TarIndex:
    table = _Table(file_name)
    for number, tar in enumerate(tars):
        table.add(number, tar)
    return table.finished()


class _Table:
    """Grows by one row a member; compact, because a list of tuples of some millions would take gigabytes."""

    def __init__(self, file_name: bool) -> None:
        self._file_name = file_name
        self._digests = bytearray()
        self._tars, self._offsets, self._sizes = array("i"), array("q"), array("q")
        self._damage: list[str] = []

    def add(self, number: int, tar: str) -> None:
        before = len(self._tars)
        links: list[tuple[str, str]] = []
        try:
            with open_input(tar) as raw:
                begin: int | None = 0
                while begin is not None:  # tars that follow one another in a file are one
                    raw.seek(begin)
                    begin = _after(raw, begin, self._add_tar(number, raw, links))
        except _DAMAGE as error:
            if len(self._tars) == before:
                raise DataError(
                    f"{tar} cannot be read as an uncompressed tar: {error}; unpack it or fetch it again"
                ) from None
            self._damage.append(f"{tar} is damaged, and not read to its end: {error}")
        self._resolve(links, before)

    def _add_tar(self, number: int, raw: Any, links: list[tuple[str, str]]) -> int:
        """Add the files of the tar that `raw` is at, and its hard links to `links`; where it ends."""
        file: Any  # the type stubs leave out `members` and `offset`
        with tarfile.open(fileobj=raw, mode="r:") as file:
            for member in file:
                file.members = []  # or it keeps a header for each member it has passed
                path = inner_path(member.name)
                if path is not None and member.islnk():
                    links.append((path, member.linkname))
                elif path is not None and member.isreg() and not member.issparse():
                    self._append(path, number, member.offset_data, member.size)
            return int(file.offset)

    def _append(self, path: str, number: int, offset: int, size: int) -> None:
        self._digests += member_digest(path, self._file_name)
        self._tars.append(number)
        self._offsets.append(offset)
        self._sizes.append(size)

    def _resolve(self, links: list[tuple[str, str]], first: int) -> None:
        """Hard links point back at a member of the same tar."""
        if not links:
            return
        rows = {bytes(self._digests[16 * row : 16 * row + 16]): row for row in range(first, len(self._tars))}
        for path, target in links:
            clean = inner_path(target)
            row = None if clean is None else rows.get(member_digest(clean, self._file_name))
            if row is not None:
                rows.setdefault(member_digest(path, self._file_name), len(self._tars))
                self._append(path, self._tars[row], self._offsets[row], self._sizes[row])

    def finished(self) -> TarIndex:
        digests = np.frombuffer(bytes(self._digests), "S16")
        order = np.argsort(digests, kind="stable")
        tars = np.frombuffer(self._tars, np.int32)[order]
        offsets = np.frombuffer(self._offsets, np.int64)[order]
        sizes = np.frombuffer(self._sizes, np.int64)[order]
        return TarIndex(digests[order], tars, offsets, sizes, tuple(self._damage))


def _after(raw: Any, begin: int, end: int) -> int | None:
    """Where another tar begins after the one from `begin` to `end`: at the first block that is not all zeros; None where
    there is none. Raises ReadError where there was nothing at `begin`: a header that `tarfile` cannot understand, which it
    takes for the end."""
    raw.seek(end)
    while chunk := raw.read(1 << 20):
        if chunk.count(0) != len(chunk):
            if end == begin:
                raise tarfile.ReadError(f"a member header is damaged near byte {end:,}")
            zeros = len(chunk) - len(chunk.lstrip(b"\0"))
            return end + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        end += len(chunk)
    return None
