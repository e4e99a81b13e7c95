"""Captioned pictures out of WebDataset tars, in the form that img2dataset writes and DataCompDR adds to."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Document, Picture, Record, Text, Unit
from megatron_vlm.data.sources.caption_rule import CaptionRule, picture_documents
from megatron_vlm.data.sources.json_values import field_names, find_field, parse_object, shown
from megatron_vlm.data.sources.splitting import LONGEST_PIECE
from megatron_vlm.data.sources.tar_groups import CutShort, Group, read_groups
from megatron_vlm.data.sources.text_tar import decode_text, printable, rejected_group, rest_of_tar
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import ConfigError

PICTURE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp"})
DEFAULT_CAPTIONS = ("txt", "json:caption")


@dataclass(frozen=True, slots=True)
class ImageTextTar:
    """Captioned pictures of a tar, plain or compressed; a tar is one unit.

    A record is the run of members that share a key (the path up to the first dot of the file name): one picture (.jpg .jpeg
    .png .webp), and its captions. Members of other kinds are passed over. A record's offset is where its first member's
    headers begin in the decompressed tar.

    Attributes:
        captions: its fields are names of text members by their suffix ("txt", "caption.txt"), and fields of .json members
            ("json:caption", "syn.json:syn_text"), where dots lead into objects. By default the .txt, and where there is
            none, "json:caption".
        limit: bytes of the largest member; a larger one is rejected, unread.

    Raises:
        ConfigError: a field of `captions` that is neither.
    """

    captions: CaptionRule = CaptionRule()
    limit: int = LONGEST_PIECE

    def __post_init__(self) -> None:
        for name, _ in self.captions.fields:
            suffix, colon, within = name.partition(":")
            if colon and not (within and suffix.rpartition(".")[2] == "json"):
                raise ConfigError(f"captions: {name!r} is no field of a .json; write it as 'json:caption'")
            if not colon and suffix.rpartition(".")[2] in (PICTURE_SUFFIXES | {"json"}):
                raise ConfigError(
                    f"captions: {name!r} holds no text by itself; name a text member, such as 'txt', or "
                    "a field of a .json, such as 'json:caption'"
                )

    def units(self, url: str, size: int, target: int) -> Sequence[Unit]:
        return [Unit(url, 0, 1, size)]

    def read(self, unit: Unit) -> Iterator[Record | Rejection]:
        wanted = {"json"}  # it says whether the download failed
        wanted.update(name.partition(":")[0].lower() for name, _ in self.captions.fields)
        if not self.captions.fields:
            wanted.add("txt")

        def part_of(suffix: str) -> str | None:
            return "image" if suffix in PICTURE_SUFFIXES else suffix if suffix in wanted else None

        number = 0
        plain = not self.captions.fields
        try:
            for number, group in enumerate(read_groups(unit, part_of, self.limit), start=1):
                document = _usual(group) if plain else None
                if document is not None:
                    yield Record(printable(group.key), group.offset, (document,), group.bytes_read, number - 1)
                else:
                    yield self._judge(unit, group, number - 1)
        except CutShort as damage:
            yield rest_of_tar(unit, damage, number)

    def _judge(self, unit: Unit, group: Group, number: int) -> Record | Rejection:
        key = printable(group.key)
        try:
            if group.defect is not None:
                raise group.defect
            documents = picture_documents(*self._picture_and_captions(group, key))
        except Unusable as defect:
            return rejected_group(unit, group, defect, number)
        return Record(key, group.offset, documents, group.bytes_read, number)

    def _picture_and_captions(self, group: Group, key: str) -> tuple[bytes, tuple[str, ...]]:
        values = {part: _value(part, content) for part, content in group.parts.items() if part != "image"}
        description = values.get("json", {})
        status = description.get("status") or "success"
        if status != "success":
            message = description.get("error_message") or "no message"
            raise Unusable(Reason.FAILED_DOWNLOAD, f"status is {shown(status)}: {shown(message)}")
        if "image" not in group.parts:
            wanted = ", .".join(sorted(PICTURE_SUFFIXES))
            raise Unusable(Reason.MISSING_IMAGE, f"no .{wanted}; it has {_members(group)}{_alone(group)}")

        def find(name: str) -> Any:
            suffix, colon, within = name.partition(":")
            value = values.get(suffix.lower())
            return find_field(value, within) if colon and value is not None else value

        def known() -> str:
            members = _members(group) + _alone(group)
            return f"{members}; the .json has {field_names(description)}" if description else members

        return group.parts["image"], self.captions.choose(find, DEFAULT_CAPTIONS, key, known)


def _usual(group: Group) -> Document | None:
    """The document of a group as img2dataset writes nearly all of them: a picture, its caption as .txt, and a .json that
    says that both are there. None where `ImageTextTar._judge` has to look, which gives the same for such a one."""
    parts = group.parts
    image, text, described = parts.get("image"), parts.get("txt"), parts.get("json")
    if image is None or text is None or group.defect is not None or text.startswith(BOM_UTF8):
        return None
    try:
        caption = text.decode().strip()
        description = orjson.loads(described) if described is not None else {}
    except ValueError:
        return None
    if not caption or type(description) is not dict or (description.get("status") or "success") != "success":
        return None
    return Picture(image), Text(caption)


def _value(part: str, content: bytes) -> Any:
    return parse_object(content) if part.rpartition(".")[2] == "json" else decode_text(content, f".{part}")


def _members(group: Group) -> str:
    return ", ".join(f".{suffix}" for suffix in (*group.parts, *group.others)).replace(".image", "a picture")


def _alone(group: Group) -> str:
    """What may be amiss where a group is half a record: of a tar sorted by kind, all pictures and then all captions."""
    whole = len(group.parts) + len(group.others) > 1
    return "" if whole else " alone, and members of a record have to be neighbours in the tar"
