"""Documents of packs: every one in a record, a few in a line."""

from __future__ import annotations

from megatron_vlm.data.documents import Span
from megatron_vlm.data.named_documents import documents_by_source, named_documents


def test_documents_are_named_once_by_source() -> None:
    packs = [[Span(1, 7, 0, 5), Span(0, 3, 2, 4)], [Span(0, 3, 6, 9), Span(0, 1, 0, 2)]]
    assert documents_by_source(packs, ["text", "captions", "unused"]) == {"text": [1, 3], "captions": [7]}


def test_a_line_is_of_bounded_length() -> None:
    assert named_documents({"text": [1, 3], "captions": [7]}) == "text 1, 3; captions 7"
    many = named_documents({"text": list(range(100_000))})
    assert many == "text 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 99988 more"
