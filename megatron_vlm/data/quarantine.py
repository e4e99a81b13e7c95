"""Records that cannot be used: why, which, and where they are written down."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from megatron_vlm.data import atomic_file
from megatron_vlm.errors import DataError


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
    """

    file: str
    key: str
    reason: Reason
    detail: str
    offset: int = 0
    number: int = 0
    bytes_read: int = 0


class Quarantine:
    """Counts rejections and writes them to `path`, one JSON object a line; atomically, and only if there are
    any.

    With `strict`, the first rejection raises DataError instead.
    """

    def __init__(self, path: Path, strict: bool = False) -> None:
        self.path = path
        self.counts: Counter[Reason] = Counter()
        self.first: Rejection | None = None
        self._strict = strict
        self._stream: TextIO | None = None

    def add(self, rejection: Rejection) -> None:
        """Record a rejection. Raises DataError, naming file, record and remedy, when strict."""
        if self._strict:
            raise DataError(
                f"{rejection.file}, record {rejection.key!r}: {rejection.reason}: {rejection.detail}. "
                "Mend or remove "
                "the record, or run without --strict to set such records aside"
            )
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = atomic_file.partial_path(self.path)
            self._stream = open(partial, "w", encoding="utf-8", newline="\n")  # noqa: SIM115  closed by commit
        self.counts[rejection.reason] += 1
        self.first = self.first or rejection
        row = {
            "file": str(rejection.file),
            "key": rejection.key,
            "reason": rejection.reason.value,
            "detail": rejection.detail,
        }
        self._stream.write(json.dumps(row) + "\n")  # ASCII: a detail may quote text that is no valid Unicode

    def commit(self) -> None:
        """Give the file its name; without rejections, remove the one that an earlier run left."""
        if self._stream is None:
            self.path.unlink(missing_ok=True)
            return
        self._stream.close()
        atomic_file.commit(self.path)
        self._stream = None

    def discard(self) -> None:
        """Drop what was not committed."""
        if self._stream is not None:
            self._stream.close()
            atomic_file.discard(self.path)
            self._stream = None

    def by_reason(self) -> dict[str, int]:
        """Counts by reason, sorted by its name."""
        return {reason.value: self.counts[reason] for reason in sorted(self.counts)}
