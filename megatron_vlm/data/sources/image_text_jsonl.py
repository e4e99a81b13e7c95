"""Captioned pictures out of JSON beside a folder of pictures: lines, or an array, such as LLaVA's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Record, Unit
from megatron_vlm.data.sources.caption_rule import CaptionRule, picture_documents
from megatron_vlm.data.sources.file_names import folder_of
from megatron_vlm.data.sources.json_files import cut_lines, read_objects
from megatron_vlm.data.sources.json_values import field_names, find_field, is_encodable, kind_of, record_key, shown
from megatron_vlm.data.sources.picture_store import FolderPictures, PictureStore
from megatron_vlm.data.sources.splitting import LONGEST_PIECE
from megatron_vlm.data.sources.unusable import Unusable

CAPTION_FIELDS = ("caption", "text")


@dataclass(frozen=True, slots=True)
class ImageTextJsonl:
    """Captioned pictures of .jsonl, .ndjson and .json files, plain or compressed, whose pictures are files in a folder.

    An object is a record: a field holds the picture's path in the folder, others its captions. Where it has "conversations"
    instead, as LLaVA's pre-training data does, the caption is the answer ("gpt") in them. Plain files are cut into ranges
    of lines; compressed ones, and a .json that holds an array, are one unit. A record's key is its field "id", or else the
    picture's path; its offset is in bytes of the decompressed file.

    Attributes:
        captions: its fields are fields of the objects, where dots lead into objects; by default "caption", "text", or the
            conversation.
        image: the field with the picture's path.
        folder: the folder, a path or a URL; by default the one that the file lies in.
        limit: bytes of the longest line; a longer one is rejected, unread.
    """

    captions: CaptionRule = CaptionRule()
    image: str = "image"
    folder: str | None = None
    limit: int = LONGEST_PIECE

    def units(self, url: str, size: int, target: int) -> Sequence[Unit]:
        return cut_lines(url, size, target)

    def read(self, unit: Unit) -> Iterator[Record | Rejection]:
        folder = FolderPictures(self.folder or folder_of(unit.url))
        for number, found in enumerate(read_objects(unit, self.limit)):
            key = ""
            try:
                if isinstance(found.value, Unusable):
                    raise found.value
                path = find_field(found.value, self.image)
                key = record_key(found.value) or (path if isinstance(path, str) and is_encodable(path) else "")
                captions = self._captions(found.value, key)
                documents = picture_documents(self._picture(folder, path, found.value), captions)
            except Unusable as defect:
                reason, detail, absent = defect.reason, str(defect), defect.absent
                yield Rejection(unit.url, key, reason, detail, found.offset, number, found.bytes_read, absent)
            else:
                yield Record(key, found.offset, documents, found.bytes_read, number)

    def _picture(self, folder: PictureStore, path: Any, record: dict[str, Any]) -> bytes:
        if path is None:
            raise Unusable(Reason.MISSING_IMAGE, f"no field {self.image!r}; it has {field_names(record)}")
        if not isinstance(path, str) or not path:
            what = "empty" if path == "" else f"{kind_of(path)}, not a path"
            raise Unusable(Reason.MISSING_IMAGE, f"field {self.image!r} is {what}")
        return folder.read(path)

    def _captions(self, record: dict[str, Any], key: str) -> tuple[str, ...]:
        def find(name: str) -> Any:
            return _answer(record[name]) if name == "conversations" and name in record else find_field(record, name)

        return self.captions.choose(find, (*CAPTION_FIELDS, "conversations"), key, lambda: field_names(record))


def _answer(conversation: Any) -> Any:
    """The one answer of a conversation of one question and one answer."""
    turns: list[Any] = conversation if isinstance(conversation, list) else [None]
    if not all(isinstance(turn, dict) for turn in turns):
        raise Unusable(Reason.BROKEN_CONVERSATION, "the conversation is not a list of turns")
    speakers = [turn.get("from") for turn in turns]
    if speakers != ["human", "gpt"]:
        seen = ", ".join(map(shown, speakers[:6])) or "nobody"
        raise Unusable(
            Reason.BROKEN_CONVERSATION,
            f"a caption is the answer of one 'human' turn and one 'gpt' turn; here {seen} speak in {len(turns)} turns",
        )
    answer = turns[1].get("value")
    if not isinstance(answer, str):
        raise Unusable(Reason.BROKEN_CONVERSATION, f"what 'gpt' says is {kind_of(answer)}, not a string")
    return answer
