"""Captioned pictures out of WebDataset tars, in the form that img2dataset writes.

A record is the run of members that share a key (the path up to the first dot of the file name): one picture
(.jpg .jpeg .png .webp), and its caption in a .txt or in a field of a .json. Members of other kinds are passed
over.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.text_sources import is_encodable

PICTURE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp"})
DEFAULT_CAPTION_KEY = "caption"

#: folder and name up to the first dot, then the suffix; no match for hidden files, like macOS's "._x.jpg"
MEMBER_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """One picture, encoded as it lay in the tar, with one or more captions, stripped, none of them empty.

    `position` is the bytes of the tar read so far.
    """

    file: Path
    key: str
    image: bytes
    captions: tuple[str, ...]
    position: int

    @property
    def size(self) -> int:
        """How much it weighs in a batch, in bytes."""
        return len(self.image)


@dataclass(slots=True)
class _Group:
    """The members of one key, as far as they have been read."""

    key: str
    parts: dict[str, bytes] = field(default_factory=dict)  # "image", "txt", "json"
    duplicate: str | None = None


class _Unusable(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def read_image_text_tar(path: Path, caption_key: str | None = None) -> Iterator[PictureRecord | Rejection]:
    """Yield the records of a tar in order; what cannot be used comes as a `Rejection`.

    Captions are taken from field `caption_key` of the .json when it is given, and otherwise from the .txt, or
    from the field "caption" where there is no .txt. The field may be a string or a list of strings.
    """
    group: _Group | None = None
    position = 0
    try:
        tar: Any  # the type stubs leave out `members` and `offset`
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                match = MEMBER_NAME.fullmatch(member.name) if member.isfile() else None
                if match is None:
                    continue
                key, suffix = match[1], match[2].lower()
                part = "image" if suffix in PICTURE_SUFFIXES else suffix
                if group is not None and key != group.key:
                    yield _finish(path, group, caption_key, position)
                    group = None
                group = group or _Group(key)
                if part in ("image", "txt", "json"):
                    _add_part(group, part, member, tar)
                position = member.offset_data + member.size
                tar.members = []  # or it keeps a header for each member it has passed
            end = tar.offset
        _check_tail(path, end)
    except (tarfile.TarError, OSError, EOFError) as error:
        # The group at hand may have lost members, so it goes with the rest of the file.
        where = f"from {group.key}" if group is not None else "from the start"
        yield Rejection(path, where, Reason.BROKEN_FILE, str(error), path.stat().st_size)
        return
    if group is not None:
        yield _finish(path, group, caption_key, position)


def _add_part(group: _Group, part: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    if part in group.parts:
        group.duplicate = member.name
    stream = tar.extractfile(member)
    content = stream.read() if stream is not None else b""
    if len(content) != member.size:
        raise tarfile.ReadError(f"member {member.name} is cut short")
    group.parts[part] = content


def _check_tail(path: Path, end: int) -> None:
    """Raise where anything but zeros follows `end`.

    `tarfile` takes a header that it cannot understand for the end, and would drop the rest without a word.
    """
    with open(path, "rb") as stream:
        stream.seek(end)
        while chunk := stream.read(1 << 20):
            if chunk.count(0) != len(chunk):
                raise tarfile.ReadError(f"a member header is damaged near byte {end}")


def _finish(path: Path, group: _Group, caption_key: str | None, position: int) -> PictureRecord | Rejection:
    try:
        if group.duplicate is not None:
            raise _Unusable(Reason.DUPLICATE_MEMBER, f"{group.duplicate} is a second one under this key")
        description = _description(group)
        status = description.get("status") or "success"
        if status != "success":
            raise _Unusable(
                Reason.FAILED_DOWNLOAD,
                f"status is {status!r}: {description.get('error_message') or 'no message'}",
            )
        if "image" not in group.parts:
            raise _Unusable(Reason.MISSING_IMAGE, f"no .{', .'.join(sorted(PICTURE_SUFFIXES))} beside the caption")
        captions = _captions(group, description, caption_key)
    except _Unusable as defect:
        return Rejection(path, group.key, defect.reason, str(defect), position)
    return PictureRecord(path, group.key, group.parts["image"], captions, position)


def _description(group: _Group) -> dict[str, Any]:
    if "json" not in group.parts:
        return {}
    try:
        description = json.loads(group.parts["json"])
    except (ValueError, RecursionError) as error:
        raise _Unusable(Reason.BROKEN_JSON, str(error)) from error
    if not isinstance(description, dict):
        raise _Unusable(Reason.BROKEN_JSON, f"a {type(description).__name__} where an object is expected")
    return description


def _captions(group: _Group, description: dict[str, Any], caption_key: str | None) -> tuple[str, ...]:
    if caption_key is None and "txt" in group.parts:
        try:
            candidates: list[Any] = [group.parts["txt"].decode("utf-8-sig")]
        except UnicodeDecodeError as error:
            raise _Unusable(Reason.INVALID_UNICODE, f".txt: {error}") from error
    else:
        name = caption_key or DEFAULT_CAPTION_KEY
        value = description.get(name)
        if value is None:
            found = ", ".join(map(repr, description)) or "no fields"
            raise _Unusable(Reason.MISSING_CAPTION, f"no field {name!r} in the .json; it has {found}")
        candidates = value if isinstance(value, list) else [value]
    if not all(isinstance(candidate, str) for candidate in candidates):
        raise _Unusable(Reason.MISSING_CAPTION, "the caption is neither a string nor a list of strings")
    captions = tuple(text for candidate in candidates if (text := candidate.strip()))
    if not captions:
        raise _Unusable(Reason.EMPTY_TEXT, "the caption is empty")
    if not all(map(is_encodable, captions)):
        raise _Unusable(Reason.INVALID_UNICODE, "the caption has half of a surrogate pair")
    return captions
