"""Conversations about pictures: LLaVA's and ShareGPT's `conversations`, OpenAI's `messages`, the Cauldron's `texts`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Document, Picture, Record, Unit
from megatron_vlm.data.sources.chat_template import BUILT_IN, ChatTemplate, Role, Turn
from megatron_vlm.data.sources.json_values import field_names, is_encodable, record_key, shown
from megatron_vlm.data.sources.picture_store import PictureNaming, PictureStore, read_picture
from megatron_vlm.data.sources.row_files import read_rows, row_units
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import ConfigError

ROLES: Mapping[str, Role] = {
    "human": Role.USER,
    "user": Role.USER,
    "gpt": Role.ASSISTANT,
    "assistant": Role.ASSISTANT,
    "system": Role.SYSTEM,
}
TURN_FIELDS = ("conversations", "messages", "texts")
PICTURE_FIELDS = ("image", "images")
COLUMNS = ("id", *TURN_FIELDS, *PICTURE_FIELDS)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a picture stands: one that the turn names itself, or the record's own by number, or its next."""

    reference: Any = None
    index: int | None = None


_Content: TypeAlias = list[str | _Place]


@dataclass(frozen=True, slots=True)
class ConversationSource:
    """One document a record, written by a chat template.

    A record has turns, and the pictures that they speak of in `image` or `images` (a name, a list of them, or as
    `picture_store.read_picture` takes them). Turns are in one of these fields:

    - `conversations`: {"from": "human", "gpt" or "system", "value": text}
    - `messages`: {"role": "user", "assistant" or "system", "content": text or list}, a list being of
      {"type": "text", "text": ...} and {"type": "image"}, which is the record's next picture, that of number "index", or one
      of its own, named by "image", "path", "url" or {"image_url": {"url": ...}}
    - `texts`: {"user": text, "assistant": text}; all pictures come before the first

    The two forms of a turn may be mixed. `placeholder` in a turn that is a plain text holds the place of the next picture.

    Attributes:
        pictures: where named pictures are; None where all are in the records.
        template: how turns are written.
        placeholder: what stands for a picture in a text.
        naming: how a picture's name in the store follows from the record's.
        max_pictures: a conversation with more is set aside (TOO_MANY_IMAGES).

    Raises:
        ConfigError: no placeholder, or a limit below 1.
    """

    pictures: PictureStore | None = None
    template: ChatTemplate = BUILT_IN["plain"]
    placeholder: str = "<image>"
    naming: PictureNaming = PictureNaming.PATH
    max_pictures: int | None = None

    def __post_init__(self) -> None:
        if not self.placeholder:
            raise ConfigError("placeholder is empty; give what stands for a picture in a text, such as '<image>'")
        if self.max_pictures is not None and self.max_pictures < 1:
            raise ConfigError(f"max_pictures is {self.max_pictures}; give 1 or more, or leave it out")

    def units(self, url: str, size: int, target: int) -> Sequence[Unit]:
        return row_units(url, size, target, TURN_FIELDS)

    def read(self, unit: Unit) -> Iterator[Record | Rejection]:
        for row in read_rows(unit, COLUMNS):
            if isinstance(row, Rejection):
                yield row
                continue
            key = record_key(row.fields)
            try:
                document = self._document(row.fields)
            except Unusable as defect:
                reason, detail, absent = defect.reason, str(defect), defect.absent
                yield Rejection(unit.url, key, reason, detail, row.offset, row.number, row.bytes_read, absent)
            else:
                yield Record(key, row.offset, (document,), row.bytes_read, row.number)

    def _document(self, fields: dict[str, Any]) -> Document:
        references = _references(fields)
        turns = _turns(fields, self.placeholder, len(references))
        _check_order(turns)
        pictures = _placed(turns, references)
        if self.max_pictures is not None and len(pictures) > self.max_pictures:
            raise Unusable(Reason.TOO_MANY_IMAGES, f"{len(pictures)} pictures, more than {self.max_pictures}")
        found = iter([Picture(read_picture(reference, self.pictures, self.naming)) for reference in pictures])
        written = [
            Turn(role, tuple(piece if isinstance(piece, str) else next(found) for piece in content))
            for role, content in turns
        ]
        return self.template.render(written)


def _references(fields: dict[str, Any]) -> list[Any]:
    """The record's own pictures, not yet looked at."""
    for name in PICTURE_FIELDS:
        value = fields.get(name)
        if value is not None and value != "":
            return list(value) if isinstance(value, list) else [value]
    return []


def _turns(fields: dict[str, Any], placeholder: str, pictures: int) -> list[tuple[Role, _Content]]:
    name = next((name for name in TURN_FIELDS if fields.get(name) is not None), None)
    if name is None:
        found = field_names(fields)
        raise Unusable(Reason.MISSING_TEXT, f"none of the fields {', '.join(map(repr, TURN_FIELDS))}; it has {found}")
    turns = fields[name]
    if not isinstance(turns, list) or not turns:
        raise Unusable(Reason.BROKEN_CONVERSATION, f"field {name!r} is {'empty' if turns == [] else 'no list of turns'}")
    if name == "texts":
        return _question_turns(turns, pictures)
    return [_turn(turn, number, placeholder) for number, turn in enumerate(turns, start=1)]


def _question_turns(turns: list[Any], pictures: int) -> list[tuple[Role, _Content]]:
    result: list[tuple[Role, _Content]] = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise Unusable(Reason.BROKEN_CONVERSATION, f"turn {number} is a {type(turn).__name__}, not an object")
        for role in (Role.USER, Role.ASSISTANT):
            places: _Content = [_Place()] * pictures if not result else []
            result.append((role, [*places, _text(turn.get(role.value), number)]))
    return result


def _turn(turn: Any, number: int, placeholder: str) -> tuple[Role, _Content]:
    if not isinstance(turn, dict):
        raise Unusable(Reason.BROKEN_CONVERSATION, f"turn {number} is a {type(turn).__name__}, not an object")
    name = _either(turn, "from", "role")
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise Unusable(Reason.BROKEN_CONVERSATION, f"turn {number} is by {shown(name)}; known: {', '.join(ROLES)}")
    value = _either(turn, "value", "content")
    if isinstance(value, list):
        return role, [_item(item, number) for item in value]
    content: _Content = []
    for index, text in enumerate(_text(value, number).split(placeholder)):
        content += [_Place(), text] if index else [text]
    return role, content


def _either(turn: dict[str, Any], first: str, second: str) -> Any:
    """The field that a turn has of two; parquet gives each turn all the fields that any has, absent ones as None."""
    value = turn.get(first)
    return turn.get(second) if value is None else value


def _text(value: Any, number: int) -> str:
    if not isinstance(value, str):
        raise Unusable(Reason.BROKEN_CONVERSATION, f"turn {number} says a {type(value).__name__} where a text is expected")
    if not is_encodable(value):
        raise Unusable(Reason.INVALID_UNICODE, f"turn {number} has half of a surrogate pair")
    return value


def _item(item: Any, number: int) -> str | _Place:
    """One of OpenAI's content list; parquet gives each item all the fields that any has, empty ones as None."""
    if isinstance(item, str):
        return _text(item, number)
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "text":
        return _text(item.get("text"), number)
    if kind not in ("image", "image_url"):
        raise Unusable(
            Reason.BROKEN_CONVERSATION, f"turn {number} has a content of type {shown(kind)}; known: text, image, image_url"
        )
    for name in ("image", "image_url", "path", "url"):
        value = item.get(name)
        if isinstance(value, dict) and "url" in value:
            value = value["url"]
        if value:
            return _Place(value)
    index = item.get("index")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool)):
        raise Unusable(Reason.BROKEN_CONVERSATION, f"turn {number} has a picture whose index is {shown(index)}")
    return _Place(None, index)


def _check_order(turns: list[tuple[Role, _Content]]) -> None:
    """At most one system turn, which is the first; then user and assistant by turns, to the assistant's last."""
    spoken = turns[1:] if turns[0][0] is Role.SYSTEM else turns
    shift = 1 + len(turns) - len(spoken)
    for index, (role, content) in enumerate(spoken):
        number = index + shift
        if role is not (Role.ASSISTANT if index % 2 else Role.USER):
            before = "the first" if not index else f"after the {spoken[index - 1][0]}'s"
            raise Unusable(Reason.BROKEN_CONVERSATION, f"turn {number} is the {role}'s, {before}")
        if not any(isinstance(piece, _Place) or piece.strip() for piece in content):
            raise Unusable(Reason.BROKEN_CONVERSATION, f"turn {number} is empty")
        if role is Role.ASSISTANT and not any(isinstance(piece, str) and piece.strip() for piece in content):
            raise Unusable(Reason.BROKEN_CONVERSATION, f"turn {number} has no word of the assistant's")
    if len(spoken) % 2 or not spoken:
        raise Unusable(Reason.BROKEN_CONVERSATION, "the last turn is not the assistant's")


def _placed(turns: list[tuple[Role, _Content]], references: list[Any]) -> list[Any]:
    """The references of all places in order. Raises Unusable unless each of the record's pictures has a place, and the
    reverse."""
    chosen: list[Any] = []
    used: set[int] = set()
    following, wanted, missing = 0, 0, False
    for piece in (piece for _, content in turns for piece in content if isinstance(piece, _Place)):
        if piece.reference is not None:
            chosen.append(piece.reference)
            continue
        wanted += 1
        index = following if piece.index is None else piece.index
        following = index + 1
        if 0 <= index < len(references):
            used.add(index)
            chosen.append(references[index])
        else:
            missing = True
    if missing or len(used) != len(references):
        raise Unusable(Reason.IMAGE_MISMATCH, f"places for {wanted} pictures, and {len(references)} pictures in the record")
    return chosen
