"""A packed row that context-parallel ranks share: which positions are a rank's, and what their queries attend to.

The row is cut into twice as many equal pieces as there are ranks, wherever documents begin and end, and each rank has two:
the one with most pairs of queries and keys goes with the one with fewest, the next with the next. Of one long document that
is the first with the last, as everybody has it. In each attention layer ranks gather the keys and values of the whole row
(as Llama 3 was trained, arXiv 2407.21783, section 3.3.2), of which a piece needs those from the beginning of the document
that it begins in.

Transformer Engine's own context parallelism cuts each document into such pieces, and so wants documents padded to multiples
of them: a row would hold other documents at another number of ranks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Some neighbouring positions of a row, and the documents, or parts of them, that lie there.

    Attributes:
        begin, end: of the positions.
        first: the first position whose keys they attend to; the last is their own last.
        queries, keys: how many each document has. They end together, and query i attends to key j where
            j <= i + (keys - queries). A document that began before the piece, which is the first if one did, has more keys
            than queries; all others have as many.
    """

    begin: int
    end: int
    first: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]

    @property
    def pairs(self) -> int:
        """Of a query and a key that it attends to: what attention of the piece costs."""
        return sum(q * (k - q) + q * (q + 1) // 2 for q, k in zip(self.queries, self.keys, strict=True))

    @property
    def carried_on(self) -> bool:
        """Whether its first document began before it."""
        return self.first < self.begin


def cut_row(lengths: Sequence[int], count: int) -> list[Piece]:
    """`count` equal pieces of a row whose documents have these lengths, none of them 0.

    Raises:
        ValueError: positions that no equal pieces make.
    """
    ends = list(accumulate(lengths))
    size, rest = divmod(ends[-1], count)
    if rest:
        raise ValueError(f"a row of {ends[-1]} positions has no {count} equal pieces")
    pieces = []
    for begin in range(0, ends[-1], size):
        number = bisect_right(ends, begin)
        first = start = ends[number] - lengths[number]
        queries, keys, at = [], [], begin
        while at < begin + size:
            stop = min(ends[number], begin + size)
            queries.append(stop - at)
            keys.append(stop - start)
            at = start = stop
            number += 1
        pieces.append(Piece(begin, begin + size, first, tuple(queries), tuple(keys)))
    return pieces


def dealt(pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """The two pieces of each rank, by number: the dearest goes with the cheapest.

    A piece that is the short end of a long document costs little and needs many keys. Where it would go with another that
    needs many, so that a rank had to keep more than any has of one document that fills the row, front goes with end.
    """
    count = len(pieces)
    order = sorted(range(count), key=lambda number: (-pieces[number].pairs, number))
    pairs = list(zip(order, order[: count // 2 - 1 : -1], strict=False))
    most = (count + 1) * (pieces[0].end - pieces[0].begin)
    if any(sum(pieces[number].end - pieces[number].first for number in pair) > most for pair in pairs):
        pairs = [(number, count - 1 - number) for number in range(count // 2)]
    return [(min(pair), max(pair)) for pair in pairs]


class _GatheredKeys(torch.autograd.Function):
    """Of keys and values that all ranks gather, the `needed` ranges (first, end). One gather for both; backward one buffer,
    into which gradients of ranges are added, and one reduce-scatter."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, key: Tensor, value: Tensor, needed: Sequence[tuple[int, int]], group: dist.ProcessGroup
    ):
        ctx.needed, ctx.group, ctx.positions = needed, group, key.size(0)
        own = torch.stack([key, value], dim=1)  # [positions / ranks, 2, heads, d]
        whole = own.new_empty(group.size() * own.size(0), *own.shape[1:])
        dist.all_gather_into_tensor(whole, own, group=group)
        return tuple(torch.cat([whole[first:end, which] for first, end in needed]) for which in (0, 1))

    @staticmethod
    def backward(ctx, *grads: Tensor):  # type: ignore[no-untyped-def]
        parts = [grad.split([end - first for first, end in ctx.needed]) for grad in grads]
        ranks, heads, width = ctx.group.size(), *grads[0].shape[1:]
        whole = grads[0].new_zeros(ranks * ctx.positions, 2, heads, width)
        for which, of_one in enumerate(parts):
            for (first, end), part in zip(ctx.needed, of_one, strict=True):
                whole[first:end, which] += part
        own = whole.new_empty(ctx.positions, 2, heads, width)
        dist.reduce_scatter_tensor(own, whole, group=ctx.group)
        return own[:, 0], own[:, 1], None, None


@dataclass
class ContextRow(PackedSeqParams):
    """This rank's part of a row, `[positions / ranks]`, its pieces one after the other.

    To megatron-core it is one sequence, whose rotary angles are `rotary`'s.

    Attributes:
        pieces: of the part, in its order.
        needed: (first, end) of the keys and values that the pieces attend to, among those that ranks gather.
        attended: the documents of the pieces, one after another, as attention takes them: packed queries, and keys of
            `whole`, under causal masks that are aligned at the bottom right.
        position_ids: int64 `[positions / ranks]`, the distance of each position from its document's beginning.
        group: the ranks that share the row.
    """

    pieces: tuple[Piece, ...] = ()
    needed: tuple[tuple[int, int], ...] = ()
    attended: PackedSeqParams | None = None
    position_ids: Tensor | None = None
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], group: dist.ProcessGroup, device: torch.device) -> ContextRow:
        """Of a row of documents with these lengths, known on the host. `position_ids` are to be given to it."""
        lengths = [length for length in lengths if length]
        whole = cut_row(lengths, 2 * group.size())
        pairs = dealt(whole)
        own = tuple(whole[number] for number in pairs[group.rank()])
        needed = tuple(needed_keys(own, pairs))
        alone, longest = _borders([sum(lengths) // group.size()], device), max(lengths)
        row = cls("thd", alone, alone, max_seqlen_q=longest, max_seqlen_kv=longest, pieces=own, needed=needed, group=group)
        row.attended = attended(own, device)
        return row

    def share(self, whole: Tensor) -> Tensor:
        """`[1, positions]` of the row -> this rank's part, `[1, positions / ranks]`."""
        return torch.cat([whole[:, piece.begin : piece.end] for piece in self.pieces], dim=1)

    def rotary(self, angles: Tensor) -> Tensor:
        """Angles of positions 0, 1, ... `[n, 1, 1, d]` into those of this rank's positions."""
        assert self.position_ids is not None
        return angles.index_select(0, self.position_ids)

    def whole(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[positions / ranks, heads, d]` of this rank -> those that its pieces attend to, each piece's from
        its first to its last, `[keys, heads, d]`. Gradients are summed over ranks."""
        assert self.group is not None
        keys, values = _GatheredKeys.apply(key, value, self.needed, self.group)
        return keys, values


def needed_keys(pieces: Sequence[Piece], pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(first, end) of the keys that `pieces` attend to, where ranks gather their `pairs` of pieces one after another."""
    places = {number: place for place, number in enumerate(number for pair in pairs for number in pair)}
    for piece in pieces:
        size = piece.end - piece.begin
        for number in range(piece.first // size, piece.end // size):
            begin = places[number] * size
            yield begin + max(piece.first - number * size, 0), begin + size


def attended(pieces: Sequence[Piece], device: torch.device) -> PackedSeqParams:
    """`ContextRow.attended` of these pieces."""
    queries = [count for piece in pieces for count in piece.queries]
    keys = [count for piece in pieces for count in piece.keys]
    return PackedSeqParams(
        "thd", _borders(queries, device), _borders(keys, device), max_seqlen_q=max(queries), max_seqlen_kv=max(keys)
    )


def _borders(lengths: Sequence[int], device: torch.device) -> Tensor:
    borders = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, pin_memory=device.type == "cuda")
    return borders.to(device, non_blocking=True)
