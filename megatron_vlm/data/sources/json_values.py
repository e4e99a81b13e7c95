"""JSON objects out of lines: fast where a line is sound, and with the reason where it is not."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.sources.unusable import Unusable

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlevel = 3


def parse_object(content: bytes) -> dict[str, Any]:
    """The object that `content` spells. Raises Unusable: broken JSON, text that is no UTF-8, or no object.

    NaN, infinities and escaped halves of surrogate pairs are let through, as Python's own module writes them: they may be
    in fields that nobody reads. Strings must be checked with `is_encodable` before they are used.
    """
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        value = _parse_leniently(content)
    if not isinstance(value, dict):
        raise Unusable(Reason.BROKEN_JSON, f"{kind_of(value)} where an object is expected")
    return value


def _parse_leniently(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Unusable(Reason.INVALID_UNICODE, str(error)) from error
    except (ValueError, RecursionError) as error:
        raise Unusable(Reason.BROKEN_JSON, str(error)) from error


def is_encodable(text: str) -> bool:
    """Whether `text` is Unicode that can be written as UTF-8; JSON can spell lone surrogates, which cannot."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def kind_of(value: Any) -> str:
    """What `value` is, in JSON's words, with its article."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def shown(value: Any) -> str:
    """Any value in a few words, for a person: `repr` alone may be megabytes, or nested too deep for it."""
    return _SHORT.repr(value)


def find_field(record: dict[str, Any], name: str) -> Any:
    """The field `name` of an object; where it has none and the name has dots, what they lead to ("meta.text").

    None where there is none.
    """
    if name in record or "." not in name:
        return record.get(name)
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def field_names(record: dict[str, Any]) -> str:
    """The fields of an object, for a person; a null is said to be one, as it counts as missing."""
    names = [repr(name) if value is not None else f"{name!r} (null)" for name, value in record.items()]
    return ", ".join(names[:20] + (["..."] if len(names) > 20 else [])) or "none"


def record_key(record: Mapping[str, Any], names: Sequence[str] = ("id",)) -> str:
    """What names a record: the first of the fields `names` that is a text or a whole number; "" where none is."""
    for name in names:
        value = record.get(name)
        if isinstance(value, str) and value and is_encodable(value):
            return value
        if type(value) is int:
            return str(value)
    return ""


def document_text(record: dict[str, Any], key: str) -> str:
    """The text in field `key`. Raises Unusable: it is missing, no string, empty, or no Unicode."""
    text = find_field(record, key)
    if text is None and not _is_null(record, key):
        raise Unusable(Reason.MISSING_TEXT, f"no field {key!r}; it has {field_names(record)}")
    return check_text(text, f"field {key!r}")


def _is_null(record: dict[str, Any], name: str) -> bool:
    """Whether a field for which there is nothing is there, and null."""
    outer, _, last = name.rpartition(".")
    holder = find_field(record, outer) if outer else None
    return name in record or (isinstance(holder, dict) and last in holder)


def check_text(text: Any, where: str) -> str:
    """`text`, if it is a string that says something. Raises Unusable, naming `where` it was."""
    if not isinstance(text, str):
        raise Unusable(Reason.MISSING_TEXT, f"{where} is {kind_of(text)}, not a string")
    if not text or text.isspace():
        raise Unusable(Reason.EMPTY_TEXT, f"{where} is empty")
    if not is_encodable(text):
        raise Unusable(Reason.INVALID_UNICODE, f"{where} has half of a surrogate pair")
    return text
