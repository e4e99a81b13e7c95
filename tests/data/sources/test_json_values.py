"""What is no object is told apart, and any value can be named in a few words."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.sources.json_values import parse_object, record_key, shown
from megatron_vlm.data.sources.unusable import Unusable


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", Reason.BROKEN_JSON),
        (b"", Reason.BROKEN_JSON),
        (b"[1]", Reason.BROKEN_JSON),
        (b'{"a": "\xff"}', Reason.INVALID_UNICODE),
        (b'{"a": ' + b"[" * 100_000, Reason.BROKEN_JSON),
        (b'{"a": ' + b"1" * 10_000 + b"}", Reason.BROKEN_JSON),
    ],
)
def test_broken_objects_are_told_apart(text: bytes, reason: Reason) -> None:
    with pytest.raises(Unusable) as caught:
        parse_object(text)
    assert caught.value.reason is reason


def test_what_python_reads_is_read() -> None:
    assert parse_object(b'{"a": "\\ud800", "b": Infinity}') == {"a": "\ud800", "b": float("inf")}


def test_keys() -> None:
    assert record_key({"id": 5, "url": "u"}, ("id", "url")) == "5"
    assert record_key({"id": None, "url": "u"}, ("id", "url")) == "u"
    assert record_key({"id": True, "url": 1.5}, ("id", "url")) == ""
    assert record_key({"id": "\ud800", "url": ""}, ("id", "url")) == ""


def test_any_value_is_shown_in_few_words() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, {"a": deep}, "x" * 10**6, b"x" * 10**6, [0] * 10**6, {"\ud800": 1, 2: 3}):
        assert 0 < len(shown(value)) < 1000
    assert (shown("a"), shown(None), shown([1])) == ("'a'", "None", "[1]")
    while deep:  # or Python would free it by recursion
        deep = deep[0]
