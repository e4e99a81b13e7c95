"""The scanner against Python's own reader: the same elements however the file is cut, and never more than a BrokenArray."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.data.sources.array_elements import BrokenArray, read_array

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.sampled_from(['"', "\\", "],[{"])
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)
FORMS: list[dict[str, Any]] = [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"indent": "\t"}]
#: text that is nearly JSON, which random bytes hardly ever are
SCRAPS = st.lists(
    st.sampled_from(["[", "]", "{", "}", ",", ":", '"', "\\", '"a"', "1", " ", "\n", "null", '"\\"', "é"])
).map("".join)


def scan(text: bytes, chunk: int = 1 << 20, **limits: int) -> list[tuple[int, bytes]]:
    return list(read_array(io.BytesIO(text).read, chunk, **limits))


@settings(max_examples=50)
@given(
    values=st.lists(VALUES), form=st.sampled_from(FORMS), chunk=st.integers(1, 40), mark=st.booleans(), white=st.booleans()
)
def test_any_chunks_give_what_json_load_gives(
    values: list[Any], form: dict[str, Any], chunk: int, mark: bool, white: bool
) -> None:
    text = json.dumps(values, **form).encode("utf-8", "surrogatepass")
    text = b"\xef\xbb\xbf" * mark + b" \r\n" * white + text + b"\n\t " * white
    found = scan(text, chunk)
    assert [json.loads(element) for _, element in found] == values
    for offset, element in found:
        assert text[offset : offset + len(element)] == element
    assert found == scan(text)


@given(text=SCRAPS.map(str.encode) | st.binary(), chunk=st.integers(1, 9))
def test_garbage_raises_nothing_else_and_broken_json_never_passes_for_sound(text: bytes, chunk: int) -> None:
    outcomes: list[Any] = []
    for size in (chunk, 1 << 20):
        elements = []
        try:
            elements += read_array(io.BytesIO(text).read, size)
            outcomes.append((elements, None))
        except BrokenArray as error:
            outcomes.append((elements, (str(error), 0 <= error.offset <= len(text))))
    assert all(damage is None or damage[1] for _, damage in outcomes)
    assert outcomes[0] == outcomes[1]
    try:
        whole = json.loads(text)
    except ValueError:
        whole = None
    try:
        parsed = [json.loads(element) for _, element in scan(text, chunk)]
    except (BrokenArray, ValueError):
        parsed = None
    assert parsed == (whole if isinstance(whole, list) else None)


def elements_before_damage(text: bytes, chunk: int, **limits: int) -> tuple[list[bytes], str]:
    elements: list[bytes] = []
    with pytest.raises(BrokenArray) as caught:  # noqa: PT012  what came before counts
        for _, element in read_array(io.BytesIO(text).read, chunk, **limits):
            elements.append(element)
    return elements, str(caught.value)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@pytest.mark.parametrize(
    ("text", "before", "detail"),
    [
        (b"", [], "no '['"),
        (b'{"a": 1}', [], "no '['"),
        (b'[{"a": 1}, {"b": ', [b'{"a": 1}'], "ends inside an element at byte 17"),
        (b'[{"a": 1}, "b', [b'{"a": 1}'], "ends inside an element"),
        (b'[{"a": 1}, ', [b'{"a": 1}'], "ends between elements"),
        (b'[{"a": 1}, {"b": [1}, 2]', [b'{"a": 1}'], "ends inside an element at byte 24"),
        (b'[{"a": 1}, {"b": 2} ', [b'{"a": 1}', b'{"b": 2}'], "ends between elements at byte 20"),
        (b"[1}", [], "'}' closes what it did not open at byte 2"),
        (b"[1, 2] \n x", [b"1", b"2"], "more follows the array at byte 9"),
        (b"[1] [2]", [b"1"], "more follows the array at byte 4"),
        (b"\xef\xbb", [], "no '['"),
    ],
)
def test_damage_comes_after_the_elements_before_it(text: bytes, before: list[bytes], detail: str, chunk: int) -> None:
    elements, message = elements_before_damage(text, chunk)
    assert elements == before
    assert detail in message


def test_a_missing_comma_or_value_is_an_element_that_is_no_json() -> None:
    assert [element for _, element in scan(b"[1,, 2,]")] == [b"1", b"", b"2", b""]
    assert [element for _, element in scan(b"[,]")] == [b"", b""]
    assert [element for _, element in scan(b'[{"a": 1} {"b": 2}, 3]')] == [b'{"a": 1} {"b": 2}', b"3"]
    assert scan(b"[ ]") == []


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_an_element_beyond_the_limit_is_damage_whatever_the_chunk(chunk: int) -> None:
    fits = b'"' + b"x" * 48 + b'"'
    assert scan(b"[1," + fits + b"]", chunk, longest=50) == [(1, b"1"), (3, fits)]
    elements, message = elements_before_damage(b'[1,"' + b"x" * 500 + b'"]', chunk, longest=50)
    assert elements == [b"1"]
    assert "longer than 50 bytes" in message
    assert "at byte 3" in message


def test_memory_stays_bounded_by_chunks_not_by_the_file() -> None:
    element = b'{"a": "' + b"x" * 1000 + b'"},'
    left = 5000
    largest = 0

    def read(size: int) -> bytes:
        nonlocal left, largest
        largest = max(largest, size)
        if left == 5000:
            left -= 1
            return b"["
        left -= 1
        return element if left > 0 else (b"0]" if left == 0 else b"")

    assert sum(1 for _ in read_array(read, 4096)) == 4999
    assert largest == 4096
