"""Pieces of a packed row attend to what the whole row's positions attend to, whatever documents lie in them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_vlm.models.context_row import ContextRow, Piece, attended, piece_bounds, slices_of
from tests.models.test_host_layers import HEADS, SIZE, _attention, _document_by_document, _row

RANKS = st.sampled_from([2, 3, 4])
CPU = torch.device("cpu")


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[int], int]:
    """Lengths of documents, and ranks that share the row."""
    ranks = draw(RANKS)
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    missing = -sum(lengths) % (2 * ranks)
    return [*lengths, *([missing] if missing else [])], ranks


def _pairs(lengths: list[int]) -> Tensor:
    """bool `[t, t]`: which key each query of a packed row attends to."""
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    same = number.unsqueeze(0) == number.unsqueeze(1)
    return same & torch.ones_like(same).tril()


def _pieces(lengths: list[int], rank: int, ranks: int) -> tuple[Piece, ...]:
    return tuple(Piece.of(lengths, *bounds) for bounds in piece_bounds(sum(lengths), rank, ranks))


def _places(pieces: tuple[Piece, ...]) -> tuple[Tensor, Tensor]:
    """Positions in the row of what pieces ask, and of the keys that they are given."""
    return torch.cat([torch.arange(p.begin, p.end) for p in pieces]), torch.cat(
        [torch.arange(p.first, p.end) for p in pieces]
    )


@settings(max_examples=150)
@given(row=rows())
def test_pieces_attend_as_the_row_does(row: tuple[list[int], int]) -> None:
    """By the borders that kernels are given."""
    lengths, ranks = row
    whole, seen = _pairs(lengths), torch.zeros(sum(lengths), dtype=torch.int64)
    for rank in range(ranks):
        pieces = _pieces(lengths, rank, ranks)
        asked, given = _places(pieces)
        packed = attended(pieces, CPU)
        queries, keys = packed.cu_seqlens_q.tolist(), packed.cu_seqlens_kv.tolist()
        assert (queries[-1], keys[-1]) == (len(asked), len(given))
        pairs = torch.zeros(len(asked), sum(lengths), dtype=torch.bool)
        for (q0, q1), (k0, k1) in zip(pairwise(queries), pairwise(keys), strict=True):
            corner = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril((k1 - k0) - (q1 - q0))
            pairs[q0:q1, given[k0:k1]] = corner
        assert torch.equal(pairs, whole[asked])
        assert packed.max_seqlen_q == max(b - a for a, b in pairwise(queries))
        assert packed.max_seqlen_kv == max(b - a for a, b in pairwise(keys))
        seen[asked] += 1
    assert (seen == 1).all(), "every position has one rank"


@settings(max_examples=60)
@given(row=rows())
def test_keys_are_taken_from_where_they_were_gathered(row: tuple[list[int], int]) -> None:
    lengths, ranks = row
    size = sum(lengths) // (2 * ranks)
    gathered = torch.cat([_places(_pieces(lengths, rank, ranks))[0] for rank in range(ranks)]).view(2 * ranks, size)
    for rank in range(ranks):
        pieces = _pieces(lengths, rank, ranks)
        taken = [gathered[place][first:end] for place, first, end in slices_of(pieces, ranks, size)]
        assert torch.equal(torch.cat(taken), _places(pieces)[1])


@settings(max_examples=60)
@given(row=rows())
def test_attention_of_pieces_is_that_of_each_document_alone(row: tuple[list[int], int]) -> None:
    lengths, ranks = row
    ours, theirs = _row(lengths), _row(lengths)
    query, key, value = ours
    out = torch.zeros(sum(lengths), HEADS * SIZE)
    attention = _attention(causal=True)
    for rank in range(ranks):
        part = ContextRow(pieces=_pieces(lengths, rank, ranks))
        asked, given = _places(part.pieces)
        found = attention._attend_pieces(query[asked], key[given], value[given], part)
        again = attention._attend_pieces(query[asked], key[given], value[given], part)
        assert torch.equal(found, again), "what a layer keeps on a piece serves the next one"
        out = out.index_put((asked,), found)
    alone = _document_by_document(theirs, lengths, causal=True)
    torch.testing.assert_close(out, alone, rtol=1e-5, atol=1e-6)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * weight).sum().backward()
    (alone * weight).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_ranks_have_alike_much_of_one_long_document(ranks: int) -> None:
    pairs = _pairs([16 * ranks]).sum(dim=1)
    work = [sum(int(pairs[a:b].sum()) for a, b in piece_bounds(16 * ranks, rank, ranks)) for rank in range(ranks)]
    assert max(work) == min(work) == int(pairs.sum()) // ranks


def test_short_documents_need_few_keys_of_others() -> None:
    """Eight of eight on four ranks: none is cut, and none gets a key that is not its own."""
    assert all(len(_places(_pieces([8] * 8, rank, 4))[1]) == 16 for rank in range(4))


def test_positions_that_no_equal_pieces_make_are_refused() -> None:
    with pytest.raises(ValueError, match="a row of 30 positions has no 4 equal pieces"):
        piece_bounds(30, 0, 2)
