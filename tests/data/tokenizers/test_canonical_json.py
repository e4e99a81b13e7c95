"""The canonical form of a tokenizer.json: what Python's own json module writes, whatever is in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.tokenizers.canonical_json import _written_quickly, canonical_json

ODD = ['"', "\\", '\\"', "\\\\u00e9", "\x7f", "\0", "\x1f", "é\\", "\\é", "🙂", "/", "\u2028"]
text = st.text(max_size=8) | st.sampled_from(ODD)
scalar = st.none() | st.booleans() | text | st.integers() | st.floats(allow_nan=True)
anything = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
whole = st.integers(0, 2**63 - 1)
number = whole | st.integers() | st.floats() | st.booleans()
merges = st.lists(text, max_size=4) | st.lists(st.lists(text | number, max_size=2), max_size=4) | anything


def tokenizers(words: st.SearchStrategy[Any], pairs: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    model = st.fixed_dictionaries({"vocab": st.dictionaries(text, words, max_size=5), "merges": pairs, "dropout": scalar})
    return st.fixed_dictionaries({"model": model, "added_tokens": anything, "é": anything})


def by_python(written: str) -> bytes:
    return json.dumps(json.loads(written), sort_keys=True, separators=(",", ":")).encode()


@given(anything | tokenizers(number, merges), st.booleans(), st.sampled_from([None, 1]))
def test_it_is_what_python_writes(value: Any, ascii_only: bool, indent: int | None) -> None:
    written = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert canonical_json(written) == by_python(written)


@given(st.dictionaries(text, whole), st.lists(text) | st.lists(st.lists(text, min_size=2, max_size=2)))
def test_an_ordinary_tokenizer_takes_the_quick_way(words: dict[str, int], pairs: list[Any]) -> None:
    model = {"type": "BPE", "vocab": words, "merges": pairs, "dropout": None}
    value = {"version": "1.0", "model": model, "padding": [1, "é"]}
    assert _written_quickly(value) == by_python(json.dumps(value))


@pytest.mark.parametrize("number", ["1e400", "-0", "-0.0", "18446744073709551616", "1e16", "0.1", "NaN", "1E5"])
def test_numbers_that_libraries_write_differently(number: str) -> None:
    for written in (
        f'{{"model": {{"vocab": {{"a": {number}}}, "merges": []}}}}',
        f'{{"model": {{"vocab": {{"a": 1}}, "merges": []}}, "x": {number}}}',
        f'{{"model": {{"vocab": {{"a": 1}}, "merges": [["b", {number}]]}}}}',
    ):
        assert canonical_json(written) == by_python(written)


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(json.JSONDecodeError):
        canonical_json('{"model": ')
