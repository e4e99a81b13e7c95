"""tokenizer.json in canonical form: what its fingerprint is of."""

from __future__ import annotations

import json
from itertools import chain
from json.encoder import encode_basestring_ascii
from typing import Any

import orjson


def canonical_json(text: str, known: Any = None) -> bytes:
    """The JSON of `text` with sorted keys, without white space and in ASCII, as Python's own module writes it. `known` is
    what it says, where that was read already.

    Raises ValueError where it is no JSON.
    """
    try:
        parsed = orjson.loads(text) if known is None else known
        quick = _written_quickly(parsed)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, AttributeError, KeyError, RecursionError, TypeError):
        quick = None  # what only Python's own module takes, or what is no tokenizer
    return quick if quick is not None else _dumps(json.loads(text))


def _written_quickly(parsed: Any) -> bytes | None:
    """By orjson, in a third of the time; None where it might write something else, which are numbers with a fraction, or too
    large for it.

    The vocabulary and its merges are nearly all of it, and are looked through by fewer calls than the rest.
    """
    model = parsed["model"]
    words, merges = model["vocab"].values(), model["merges"]
    names = chain.from_iterable(merges) if merges and isinstance(merges[0], list) else merges
    rest = {**parsed, "model": {**model, "vocab": None, "merges": None}}
    if set(map(type, words)) <= {int} and set(map(type, names)) <= {str} and not _has_float(rest):
        return _in_ascii(parsed)
    return None


def _has_float(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_float, value.values()))
    return any(map(_has_float, value)) if isinstance(value, list) else isinstance(value, float)


def _dumps(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _in_ascii(value: Any) -> bytes:
    compact = orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    # As if all of it were one string, then without that string's quotes and without the escapes that it has of its own.
    escaped: str = encode_basestring_ascii(compact)
    return escaped[1:-1].replace('\\"', '"').replace("\\\\", "\\").encode()
