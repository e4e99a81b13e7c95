"""Documents of many pictures and texts in reading order: OBELICS' parallel lists, and MMC4's matched sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Document, Part, Picture, Record, Text, Unit
from megatron_vlm.data.sources.json_values import field_names, is_encodable, record_key, shown
from megatron_vlm.data.sources.picture_store import PictureNaming, PictureStore, read_picture
from megatron_vlm.data.sources.row_files import read_rows, row_units
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import ConfigError

TEXT_FIELDS = ("texts", "text_list")
KEY_FIELDS = ("id", "url", "document_url")
OBELICS_SEPARATOR = "\n\n"
MMC4_SEPARATOR = " "


class MissingPicture(StrEnum):
    """What to do with a document one of whose pictures is not there."""

    DROP = "drop"  # the picture alone, as long as another is left
    REJECT = "reject"  # the document


class BeyondLimit(StrEnum):
    """What to do with a document that has more pictures than it may."""

    DROP = "drop"  # the pictures that are too many
    CUT = "cut"  # the document, before the first of these
    REJECT = "reject"  # the document as a whole


@dataclass(frozen=True, slots=True)
class _Place:
    """A picture's place among the texts, and what names it."""

    reference: Any


_Layout: TypeAlias = list[str | _Place]


@dataclass(frozen=True, slots=True)
class InterleavedSource:
    """One document a record, its pictures in their places.

    A record is laid out in one of two ways:

    - OBELICS: `texts` and a list of pictures of the same length; where one has null the other has something. Where both
      have, the picture comes first.
    - MMC4: `text_list`, and `image_info`, a list of {"image_name", "matched_text_index", "matched_sim"}; each picture comes
      before the sentence that it was matched to.

    Attributes:
        pictures: where named pictures are; None where all are in the records.
        naming: how a picture's name in the store follows from the record's path or URL.
        image_key: OBELICS' list of pictures: names, URLs, bytes, or maps of "bytes" and "path".
        image_name_key: what names a picture in MMC4's `image_info`, such as "raw_url" where they are named by URL.
        separator: between texts that follow one another, once pictures that are not there are left out; None for a blank
            line in OBELICS and a space in MMC4. Nothing comes between a text and a picture.
        min_similarity: pictures of MMC4 with a lower `matched_sim`, or none, are left out.
        missing: what becomes of a document where a picture is missing.
        max_pictures: how many a document may have; None for any number.
        beyond: what becomes of one with more.

    Raises:
        ConfigError: a limit below 1, or a similarity that is no number.
    """

    pictures: PictureStore | None = None
    naming: PictureNaming = PictureNaming.PATH
    image_key: str = "images"
    image_name_key: str = "image_name"
    separator: str | None = None
    min_similarity: float | None = None
    missing: MissingPicture = MissingPicture.DROP
    max_pictures: int | None = None
    beyond: BeyondLimit = BeyondLimit.DROP

    def __post_init__(self) -> None:
        if self.max_pictures is not None and self.max_pictures < 1:
            raise ConfigError(f"max_pictures is {self.max_pictures}; give 1 or more, or leave it out")
        if self.min_similarity is not None and math.isnan(self.min_similarity):
            raise ConfigError("min_similarity is not a number; MMC4's own are between 0 and 1")

    def units(self, url: str, size: int, target: int) -> Sequence[Unit]:
        return row_units(url, size, target, TEXT_FIELDS)

    def read(self, unit: Unit) -> Iterator[Record | Rejection]:
        for row in read_rows(unit, (*KEY_FIELDS, *TEXT_FIELDS, self.image_key, "image_info")):
            if isinstance(row, Rejection):
                yield row
                continue
            key = record_key(row.fields, KEY_FIELDS)
            try:
                document, absent = self._document(row.fields)
            except Unusable as defect:
                reason, detail, absent = defect.reason, str(defect), defect.absent
                yield Rejection(unit.url, key, reason, detail, row.offset, row.number, row.bytes_read, absent)
            else:
                yield Record(key, row.offset, (document,), row.bytes_read, row.number, absent)

    def _document(self, fields: dict[str, Any]) -> tuple[Document, tuple[str, ...]]:
        """What it says, and where pictures would lie that are not there."""
        if fields.get("text_list") is not None:
            layout, separator = self._mmc4(fields), MMC4_SEPARATOR
        elif fields.get("texts") is not None:
            layout, separator = self._obelics(fields), OBELICS_SEPARATOR
        else:
            found = field_names(fields)
            raise Unusable(Reason.MISSING_TEXT, f"neither field 'texts' nor 'text_list'; it has {found}")
        if not any(isinstance(piece, str) for piece in layout):
            raise Unusable(Reason.EMPTY_TEXT, "no text in it")
        pieces, absent = self._found(layout)
        document = _joined(pieces, separator if self.separator is None else self.separator)
        if not any(isinstance(part, Text) for part in document):
            raise Unusable(Reason.EMPTY_TEXT, f"no text before picture {(self.max_pictures or 0) + 1}, where it is cut")
        return document, absent

    def _obelics(self, fields: dict[str, Any]) -> _Layout:
        texts = _list(fields, "texts")
        pictures = _list(fields, self.image_key) if fields.get(self.image_key) is not None else [None] * len(texts)
        if len(texts) != len(pictures):
            detail = f"{len(texts)} texts beside {len(pictures)} of {self.image_key!r}; the lists have to be parallel"
            raise Unusable(Reason.IMAGE_MISMATCH, detail)
        layout: _Layout = []
        for index, (text, reference) in enumerate(zip(texts, pictures, strict=True)):
            layout += [] if reference is None or reference == "" else [_Place(reference)]
            layout += [] if text is None else _checked(text, f"texts[{index}]")
        return layout

    def _mmc4(self, fields: dict[str, Any]) -> _Layout:
        texts = _list(fields, "text_list")
        infos = _list(fields, "image_info") if fields.get("image_info") is not None else []
        before: list[list[_Place]] = [[] for _ in texts]
        for index, info in enumerate(infos):
            if not isinstance(info, dict):
                raise Unusable(Reason.IMAGE_MISMATCH, f"image_info[{index}] is a {type(info).__name__}, not an object")
            place = info.get("matched_text_index")
            if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(texts):
                detail = f"image_info[{index}] is matched to sentence {shown(place)} of {len(texts)}"
                raise Unusable(Reason.IMAGE_MISMATCH, detail)
            if self.min_similarity is not None:
                similarity = info.get("matched_sim")
                if not isinstance(similarity, (int, float)) or not similarity >= self.min_similarity:
                    continue
            before[place].append(_Place(info.get(self.image_name_key)))
        layout: _Layout = []
        for index, text in enumerate(texts):
            layout += before[index]
            layout += _checked(text, f"text_list[{index}]")
        return layout

    def _found(self, layout: _Layout) -> tuple[list[str | Picture], tuple[str, ...]]:
        """`layout` with pictures in their places, as far as they are there and not too many; and where others would lie."""
        result: list[str | Picture] = []
        count = places = 0
        missing: Unusable | None = None
        absent: list[str] = []
        for piece in layout:
            if isinstance(piece, str):
                result.append(piece)
                continue
            places += 1
            full = self.max_pictures is not None and count == self.max_pictures
            if full and self.beyond is BeyondLimit.DROP:
                continue
            try:
                encoded = read_picture(piece.reference, self.pictures, self.naming)
            except Unusable as defect:
                if self.missing is MissingPicture.REJECT or defect.reason is not Reason.MISSING_IMAGE:
                    raise
                missing = missing or defect
                absent += defect.absent
                continue
            if full and self.beyond is BeyondLimit.REJECT:
                raise Unusable(Reason.TOO_MANY_IMAGES, f"more than {self.max_pictures} pictures")
            if full:
                break
            result.append(Picture(encoded))
            count += 1
        if missing is not None and not count:
            detail = f"none of its {places} pictures is there; the first: {missing}"
            raise Unusable(Reason.MISSING_IMAGE, detail, tuple(absent))
        return result, tuple(absent)


def _list(fields: dict[str, Any], name: str) -> list[Any]:
    value = fields[name]
    if not isinstance(value, list):
        raise Unusable(Reason.MISSING_TEXT, f"field {name!r} is a {type(value).__name__}, not a list")
    return value


def _checked(text: Any, where: str) -> list[str]:
    """The text, or nothing for one of white space alone."""
    if not isinstance(text, str):
        raise Unusable(Reason.MISSING_TEXT, f"{where} is a {type(text).__name__}, not a text")
    if not is_encodable(text):
        raise Unusable(Reason.INVALID_UNICODE, f"{where} has half of a surrogate pair")
    return [text] if text.strip() else []


def _joined(pieces: Sequence[str | Picture], separator: str) -> Document:
    document: list[Part] = []
    run: list[str] = []
    for piece in pieces:
        if isinstance(piece, str):
            run.append(piece)
            continue
        if run:
            document.append(Text(separator.join(run)))
            run = []
        document.append(piece)
    if run:
        document.append(Text(separator.join(run)))
    return tuple(document)
