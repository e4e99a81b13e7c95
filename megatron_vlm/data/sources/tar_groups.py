"""The records of a WebDataset tar: runs of members that share a key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.decompression import Damaged
from megatron_vlm.data.sources.file_names import inner_path, may_lead_out
from megatron_vlm.data.sources.json_values import is_encodable
from megatron_vlm.data.sources.opening import open_decompressed
from megatron_vlm.data.sources.splitting import LONGEST_PIECE
from megatron_vlm.data.sources.tar_members import EndMissing, Kind, Member, TarMembers
from megatron_vlm.data.sources.unusable import Unusable


@dataclass(slots=True)
class Group:
    """The members of one key.

    Attributes:
        key: their path up to the first dot of the file name.
        offset: where the first one begins, in bytes of the decompressed tar.
        parts: content by part, as `part_of` names it.
        bytes_read: of the tar as it is stored, up to the end of the last one.
        defect: what is wrong with one of them.
        others: suffixes of members that were passed over.
    """

    key: str
    offset: int
    parts: dict[str, bytes] = field(default_factory=dict)
    bytes_read: int = 0
    defect: Unusable | None = None
    others: list[str] = field(default_factory=list)


class CutShort(Damaged):
    """Damage to a tar, after `group` of which members may have been lost, if there is one."""

    def __init__(self, detail: str, group: Group | None, offset: int) -> None:
        super().__init__(detail)
        self.group, self.offset = group, offset


def read_groups(unit: Unit, part_of: Callable[[str], str | None], limit: int = LONGEST_PIECE) -> Iterator[Group]:
    """Yield the groups of a tar in order.

    Members without a key, hidden ones and folders are passed over, as are the ones whose suffix (all after the first dot of
    the file name, in lower case) `part_of` gives no part; a key with none but these gives no group. A member that is a
    link, a sparse file, of more than `limit` bytes, a second one of its part, or whose path leads out of the tar's folder,
    is a defect of its group, and is not read.

    Raises CutShort: the rest cannot be read.
    """
    group: Group | None = None
    with open_decompressed(unit.url) as (stream, stored_bytes):
        tar = TarMembers(stream)
        try:
            for member in tar:
                key, suffix = _split(member.name)
                if not suffix or member.kind is Kind.OTHER:
                    continue
                if group is None or key != group.key:
                    if group is not None and (group.parts or group.defect):
                        yield group
                    group = Group(key, member.offset, {})
                part = part_of(suffix)
                if part is None:
                    group.others.append(suffix)
                elif _is_plain(group, member, part, limit) or (defect := _defect(group, member, part, limit)) is None:
                    group.parts[part] = tar.content(member)
                else:
                    group.defect = group.defect or defect
                taken = stored_bytes()
                group.bytes_read = taken if taken < unit.size else unit.size
        except EndMissing as error:  # members may be missing, but the ones that are there are whole
            if group is not None and (group.parts or group.defect):
                yield group
            raise CutShort(str(error), None, tar.offset) from error
        except Damaged as error:
            raise CutShort(str(error), group, tar.offset) from error
    if group is not None and (group.parts or group.defect):
        yield group


def _split(name: str) -> tuple[str, str]:
    """The folder and the name up to the first dot, and the suffix after it in lower case, which is empty where there is no
    key: of hidden files, like macOS's "._x.jpg", and of names without a dot."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return (folder + slash + stem if slash else stem), (suffix.lower() if stem else "")


def _is_plain(group: Group, member: Member, part: str, limit: int) -> bool:
    """Whether nothing can be wrong with a member, without the words for what is."""
    return member.kind is Kind.FILE and member.size <= limit and part not in group.parts and not may_lead_out(member.name)


def _defect(group: Group, member: Member, part: str, limit: int) -> Unusable | None:
    name = member.name if is_encodable(member.name) else ascii(member.name)
    if part in group.parts:
        return Unusable(Reason.DUPLICATE_MEMBER, f"{name} is a second one under this key")
    if inner_path(name) is None:
        return Unusable(Reason.ESCAPING_PATH, f"{name} leads out of the tar's folder")
    if member.kind is Kind.LINK:
        return Unusable(Reason.ESCAPING_PATH, f"{name} is a link, and links are not followed")
    if member.kind is Kind.FILE and member.size <= limit:
        return None
    what = "a sparse file, which is not read" if member.kind is Kind.SPARSE else f"of {member.size:,} bytes"
    if part == "image":
        reason = Reason.OVERSIZED_IMAGE if member.kind is Kind.FILE else Reason.MISSING_IMAGE
    else:
        reason = Reason.MISSING_TEXT
    return Unusable(reason, f"{name} is {what}")
