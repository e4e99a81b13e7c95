"""Records that cannot be used, and sound ones that are left out: which, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a record was set aside. The values are what NAME.quarantine.jsonl and NAME.json say."""

    BROKEN_FILE = "broken_file"  # the rest of a source file cannot be read
    BROKEN_JSON = "broken_json"
    INVALID_UNICODE = "invalid_unicode"
    MISSING_TEXT = "missing_text"
    EMPTY_TEXT = "empty_text"
    MISSING_CAPTION = "missing_caption"
    MISSING_IMAGE = "missing_image"
    DUPLICATE_MEMBER = "duplicate_member"  # two pictures or two captions under one key
    FAILED_DOWNLOAD = "failed_download"  # img2dataset's status is not "success"
    UNDECODABLE_IMAGE = "undecodable_image"
    OVERSIZED_IMAGE = "oversized_image"
    ESCAPING_PATH = "escaping_path"  # a picture's path that leads out of its folder
    BROKEN_CONVERSATION = "broken_conversation"  # turns that are no turns, or in no order
    IMAGE_MISMATCH = "image_mismatch"  # more or fewer pictures than the text has places for
    TOO_MANY_IMAGES = "too_many_images"
    TOO_MANY_TOKENS = "too_many_tokens"
    # sound records that were asked to be left out
    SMALL_IMAGE = "small_image"
    EXTREME_ASPECT = "extreme_aspect"
    SHORT_CAPTION = "short_caption"
    LONG_CAPTION = "long_caption"
    DUPLICATE_IMAGE = "duplicate_image"


#: reasons of sound records that a filter leaves out: counted, and no loss
FILTERED = frozenset(
    {Reason.SMALL_IMAGE, Reason.EXTREME_ASPECT, Reason.SHORT_CAPTION, Reason.LONG_CAPTION, Reason.DUPLICATE_IMAGE}
)


@dataclass(frozen=True, slots=True)
class Rejection:
    """One record that cannot be used.

    Attributes:
        file: path or URL of the source file.
        key, offset, number, bytes_read: as of `megatron_vlm.data.records.Record`.
        reason: the kind of defect.
        detail: what was seen, in words.
        absent: as of `Record`.
    """

    file: str
    key: str
    reason: Reason
    detail: str
    offset: int = 0
    number: int = 0
    bytes_read: int = 0
    absent: tuple[str, ...] = ()
