"""Pieces of a packed row attend to what the whole row's positions attend to, whatever documents lie in them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_vlm.config.loading import load_config
from megatron_vlm.models.context_row import ContextRow, Piece, attended, cut_row, dealt, needed_keys
from megatron_vlm.planning.layout import Layout
from tests.models.test_host_layers import HEADS, SIZE, _attention, _document_by_document, _row

RANKS = st.sampled_from([2, 3, 4])
CPU = torch.device("cpu")
SHAPE = load_config(
    preset="tiny", overrides=["--data.sources", "{text: t, captions: c}", "--schedule.train_steps", "9"]
).shape_of(0)


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


def _ranks(lengths: list[int], ranks: int) -> list[tuple[Piece, ...]]:
    """The pieces of each rank."""
    pieces = cut_row(lengths, 2 * ranks)
    return [tuple(pieces[number] for number in pair) for pair in dealt(pieces)]


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
    for pieces in _ranks(lengths, ranks):
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
    parts = _ranks(lengths, ranks)
    gathered = torch.cat([_places(pieces)[0] for pieces in parts])
    pairs = dealt(cut_row(lengths, 2 * ranks))
    for pieces in parts:
        taken = [gathered[first:end] for first, end in needed_keys(pieces, pairs)]
        assert torch.equal(torch.cat(taken), _places(pieces)[1])


@settings(max_examples=60)
@given(row=rows())
def test_attention_of_pieces_is_that_of_each_document_alone(row: tuple[list[int], int]) -> None:
    lengths, ranks = row
    ours, theirs = _row(lengths), _row(lengths)
    query, key, value = ours
    out = torch.zeros(sum(lengths), HEADS * SIZE)
    attention = _attention(causal=True)
    for pieces in _ranks(lengths, ranks):
        part = ContextRow(pieces=pieces)
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
def test_of_one_long_document_a_rank_has_a_piece_from_each_end(ranks: int) -> None:
    parts = _ranks([16 * ranks], ranks)
    assert [(first.begin // 8, last.begin // 8) for first, last in parts] == [(r, 2 * ranks - 1 - r) for r in range(ranks)]
    pairs = _pairs([16 * ranks]).sum()
    assert {sum(piece.pairs for piece in pieces) for pieces in parts} == {int(pairs) // ranks}


@settings(max_examples=100)
@given(row=rows())
def test_the_dearest_piece_goes_with_the_cheapest(row: tuple[list[int], int]) -> None:
    """But where a rank would keep more keys than of one document that fills the row."""
    lengths, ranks = row
    whole, size = _pairs(lengths), sum(lengths) // (2 * ranks)
    costs = sorted(int(whole[piece.begin : piece.end].sum()) for piece in cut_row(lengths, 2 * ranks))
    parts = _ranks(lengths, ranks)
    found = [sum(int(whole[piece.begin : piece.end].sum()) for piece in pieces) for pieces in parts]
    from_both_ends = all(pieces[0].begin + pieces[1].end == sum(lengths) for pieces in parts)
    assert sorted(found) == sorted(costs[n] + costs[-1 - n] for n in range(ranks)) or from_both_ends
    assert max(len(_places(pieces)[1]) for pieces in parts) <= (2 * ranks + 1) * size


def test_short_ends_of_long_documents_do_not_meet() -> None:
    """The last position of a document is in a piece of short ones, which costs little: by cost it goes with the dearest
    piece, and their rank would need nearly the whole row twice."""
    parts = _ranks([25, *[1] * 7], 2)
    assert [len(_places(pieces)[1]) for pieces in parts] == [8 + 32, 16 + 24]


@settings(max_examples=100)
@given(draw=st.data(), packs=st.integers(1, 4), ranks=RANKS)
def test_no_rank_keeps_more_keys_than_are_planned_for(draw: st.DataObject, packs: int, ranks: int) -> None:
    """Documents that lie in packs, wherever pieces begin."""
    length = draw.draw(st.sampled_from([24, 48]))
    row = []
    for _ in range(packs):
        cuts = sorted({0, length, *draw.draw(st.lists(st.integers(1, length - 1), max_size=4))})
        row += [end - begin for begin, end in pairwise(cuts)]
    shape = replace(SHAPE, micro_batch_size=packs, sequence_length=length)
    planned = Layout(ranks, context=ranks).kept_keys(shape) * packs * length / ranks
    assert max(len(_places(pieces)[1]) for pieces in _ranks(row, ranks)) <= planned


def test_short_documents_need_few_keys_of_others() -> None:
    """Eight of eight on four ranks: none is cut, and none gets a key that is not its own."""
    assert all(len(_places(pieces)[1]) == 16 for pieces in _ranks([8] * 8, 4))


def test_positions_that_no_equal_pieces_make_are_refused() -> None:
    with pytest.raises(ValueError, match="a row of 30 positions has no 4 equal pieces"):
        cut_row([30], 4)
