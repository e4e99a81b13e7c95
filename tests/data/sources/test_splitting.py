"""Pieces are what bytes.split says, whatever the blocks; none is longer than the limit."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.sources import splitting
from megatron_vlm.data.sources.splitting import split_stream


def every_piece(content: bytes, separator: bytes, **options: int) -> list[tuple[int, bytes | None]]:
    found: list[tuple[int, bytes | None]] = []
    for offset, pieces, passed_over in split_stream(io.BytesIO(content), separator, **options):
        if passed_over:
            found.append((offset, None))
        for piece in pieces:
            found.append((offset, piece))
            offset += len(piece) + len(separator)
    return found


@given(
    content=st.text("ab\n").map(str.encode), separator=st.sampled_from([b"\n", b"ab", b"\nab\n"]), block=st.integers(1, 9)
)
def test_pieces_are_those_of_bytes_split(content: bytes, separator: bytes, block: int) -> None:
    expected = content.split(separator)
    if not expected[-1]:
        expected.pop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "BLOCK_BYTES", block)
        found = every_piece(content, separator)
    assert [piece for _, piece in found] == expected
    assert all(content[offset : offset + len(piece or b"")] == piece for offset, piece in found)


def test_a_long_piece_is_passed_over_and_the_next_one_read() -> None:
    content = b"one\n" + b"x" * 100 + b"\ntwo\n" + b"y" * 11
    assert every_piece(content, b"\n", limit=10) == [(0, b"one"), (4, None), (105, b"two"), (109, None)]
    assert every_piece(content, b"\n", limit=11)[-1] == (109, b"y" * 11)


def test_reading_stops_where_no_piece_can_begin_any_more() -> None:
    """A line of gigabytes must not be read by each of the units that it spans."""
    stream = io.BytesIO(b"x" * 10_000 + b"\nlast")
    assert list(split_stream(stream, limit=10, start=100, inside=True, stop=200)) == []
    assert stream.tell() < 300
