"""The members of a tar, read straight through: nothing is unpacked, no link is followed, no damage ends it in silence."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import BinaryIO

from megatron_vlm.data.sources.decompression import Damaged

BLOCK = 512
ZEROS = bytes(BLOCK)
SKIPPED_AT_ONCE = 1 << 20
LONGEST_EXTENSION = 1 << 20  # a long name or a pax header: in truth some hundred bytes

_CHECKED_SIGNED = struct.Struct("148b8x356b")  # what some old writers summed up
_PAX_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")


class EndMissing(Damaged):
    """A tar that stops after a member without the zeros that end one."""


class Kind(Enum):
    """What a member is."""

    FILE = "a file"
    LINK = "a link"
    SPARSE = "a sparse file"
    OTHER = "neither a file nor a link"


# Made once for each of millions of members, so not frozen: that takes three times as long.
@dataclass(slots=True)
class Member:
    """A member of a tar.

    Attributes:
        name: as it is in the tar; bytes that are no UTF-8 as lone surrogates.
        kind: what it is.
        size: bytes of its content; 0 for links, folders and devices.
        offset: where its headers begin, in bytes of the decompressed tar.
    """

    name: str
    kind: Kind
    size: int
    offset: int


@dataclass(slots=True)
class _Extension:
    """What the headers before a member say of it."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False


class TarMembers:
    """Iterates over the members of a tar; `content` gives the bytes of the one at hand.

    Old, ustar, GNU and pax headers are understood. Tars that follow one another in a file are read as one.

    Iterating and `content` raise Damaged: a header's checksum is wrong, or the tar breaks off; `EndMissing`, after the last
    member, where it only lacks the zeros that end a tar.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.offset = 0  # bytes read of the decompressed tar
        self._stream = stream
        self._left = 0  # bytes of the member's content that have not been read
        self._padding = 0  # and the zeros after it

    def __iter__(self) -> Iterator[Member]:
        everywhere, here = _Extension(), _Extension()
        begin, ended, plain = 0, False, True  # plain: nothing was said that holds for all members
        extended = False  # the headers of a member have begun
        read = self._stream.read
        while True:
            if self._left or self._padding:
                self._skip()
            at = self.offset
            header = read(BLOCK)
            self.offset = at + len(header)
            if not header:
                break
            if header == ZEROS and not extended:
                ended = True
                continue
            if len(header) < BLOCK:
                if ended and not any(header):
                    continue
                raise Damaged(f"it breaks off in a member header at byte {at}")
            _check(header, at)
            ended = False
            begin = begin if extended else at
            kind, size = header[156:157], _size(header, at)
            self._left, self._padding = size, -size % BLOCK
            if (kind == b"0" or kind == b"\0") and not extended and plain:  # as nearly all are
                name = _name(header)
                yield Member(name, Kind.OTHER if name.endswith("/") else Kind.FILE, size, at)
                continue
            if kind in b"xXgLK":
                extended = extended or kind != b"g"
                self._extend(kind, everywhere if kind == b"g" else here, size, at)
                plain = plain and kind != b"g"
                continue
            yield self._member(header, kind, here, everywhere, begin)
            here, extended = _Extension(), False
        if extended:
            raise Damaged(f"it breaks off before the member that the headers at byte {begin} announce")
        if not ended:
            raise EndMissing(f"it ends at byte {at} without the zeros that end a tar, so it may have been cut short")

    def content(self, member: Member) -> bytes:
        """The content of the member that was given last; once, and only for a file."""
        content = self._stream.read(member.size)
        self.offset += len(content)
        self._left -= len(content)
        if self._left:
            raise Damaged(f"member {member.name!a} is cut short")
        return content

    def _member(self, header: bytes, kind: bytes, here: _Extension, everywhere: _Extension, begin: int) -> Member:
        name = here.name or everywhere.name or _name(header)
        sparse = here.sparse or everywhere.sparse
        if kind == b"S":
            sparse = True
            more = header[482]
            while more:  # further blocks of its map
                block = self._stream.read(BLOCK)
                self.offset += len(block)
                if len(block) < BLOCK:
                    raise Damaged(f"it breaks off in the map of {name!a}")
                more = block[504]
        if kind in b"123456":
            self._left = self._padding = 0
            return Member(name, Kind.LINK if kind in b"12" else Kind.OTHER, 0, begin)
        size = here.size if here.size is not None else everywhere.size
        if size is not None:
            self._left, self._padding = size, -size % BLOCK
        if sparse:
            what = Kind.SPARSE
        elif kind in b"0\x007" and not name.endswith("/"):
            what = Kind.FILE
        else:
            what = Kind.OTHER
        return Member(name, what, self._left, begin)

    def _extend(self, kind: bytes, extension: _Extension, size: int, at: int) -> None:
        if size > LONGEST_EXTENSION:
            raise Damaged(f"the header at byte {at} says that {size:,} bytes of headers follow")
        content = self.content(Member("of headers", Kind.OTHER, size, at))
        if kind == b"L":
            extension.name = _text(content)
        elif kind != b"K":
            for name, value in _pax_records(content, at):
                if name == b"path" or name == b"GNU.sparse.name":
                    extension.name = value.decode("utf-8", "surrogateescape")
                elif name == b"size":
                    if not value.isdigit() or len(value) > 18:
                        raise Damaged(f"the header at byte {at} has a size that is no number")
                    extension.size = int(value)
                elif name.startswith(b"GNU.sparse."):
                    extension.sparse = True

    def _skip(self) -> None:
        """Pass over what is left of the member at hand."""
        left = self._left + self._padding
        if not left:
            return
        self._left = self._padding = 0
        while left:
            block = self._stream.read(min(left, SKIPPED_AT_ONCE))
            if not block:
                raise Damaged(f"it breaks off in a member, at byte {self.offset}")
            self.offset += len(block)
            left -= len(block)


def _check(header: bytes, at: int) -> None:
    try:
        said = int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        said = -1
    # The sum of the bytes, the field's own counted as spaces. Adler-32's lower half is one more than the sum of all, modulo
    # 65521.
    counted = said - 8 * 0x20 + sum(header[148:156])
    if (counted + 1) % 65521 != zlib.adler32(header) & 0xFFFF and said != sum(_CHECKED_SIGNED.unpack(header)) + 256:
        raise Damaged(f"a member header is damaged at byte {at}")


def _size(header: bytes, at: int) -> int:
    """Of the content: `_number` of its field, which nearly always is eleven octal digits and a zero."""
    try:
        size = int(header[124:135], 8) if header[135] == 0 else -1
    except ValueError:
        size = -1
    return size if size >= 0 else _number(header[124:136], at)


def _number(field: bytes, at: int) -> int:
    if field[0] == 0x80:  # GNU: the rest is a binary number
        number = int.from_bytes(field[1:], "big")
    else:
        try:
            number = int(field.partition(b"\0")[0].strip() or b"0", 8)
        except ValueError:
            number = -1
    if not 0 <= number < 1 << 62:
        raise Damaged(f"the member header at byte {at} has no size")
    return number


def _name(header: bytes) -> str:
    end = header.find(0, 0, 100)
    name = header[: end if end >= 0 else 100].decode("utf-8", "surrogateescape")
    if not header[345]:
        return name
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    end = field.find(0)
    return (field if end < 0 else field[:end]).decode("utf-8", "surrogateescape")


def _pax_records(content: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place < len(content) and content[place]:
        match = _PAX_RECORD.match(content, place)
        end = place + int(match[1]) if match is not None else 0
        if match is None or end <= match.end() - 1 or content[end - 1 : end] != b"\n":
            raise Damaged(f"the pax header at byte {at} is damaged")
        yield match[2], content[match.end() : end - 1]
        place = end
