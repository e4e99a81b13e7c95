"""A packed row that context-parallel ranks share: which positions are a rank's, and what their queries attend to.

The row is cut into twice as many equal pieces as there are ranks, wherever documents begin and end, and rank r has pieces r
and 2 * ranks - 1 - r: of one long document the first of these attends to as much less than the mean as the other to more, so
that ranks have alike much to do. In each attention layer ranks gather the keys and values of the whole row (as Llama 3 was
trained, arXiv 2407.21783, section 3.3.2), of which a piece needs those from the beginning of the document that it begins in.

Transformer Engine's own context parallelism cuts each document into such pieces, and so wants documents padded to multiples
of them: a row would hold other documents at another number of ranks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor


def piece_bounds(positions: int, rank: int, ranks: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(first, end) in the row of a rank's two pieces. Raises ValueError for positions that no equal pieces make."""
    size, rest = divmod(positions, 2 * ranks)
    if rest:
        raise ValueError(f"a row of {positions} positions has no {2 * ranks} equal pieces")
    return (rank * size, (rank + 1) * size), ((2 * ranks - 1 - rank) * size, (2 * ranks - rank) * size)


@dataclass
class Piece(PackedSeqParams):
    """A rank's piece of a row as attention takes it: documents, or parts of them, whose queries and keys end together.

    Query i of a document's q and key j of its k attend where j <= i + (k - q): a causal mask aligned at the bottom right.

    Attributes:
        first, end: the keys of it among the row's.
        carried_on: queries of a document that began before the piece, 0 where none did: all others have as many keys as
            queries.
    """

    first: int = 0
    end: int = 0
    carried_on: int = 0

    @classmethod
    def of(cls, lengths: Sequence[int], begin: int, end: int, device: torch.device) -> Piece:
        """The positions `begin` to `end` of a row whose documents have these lengths, none of them 0."""
        ends = list(accumulate(lengths))
        number = bisect_right(ends, begin)
        first = ends[number] - lengths[number]
        queries, keys = [0], [0]
        while queries[-1] < end - begin:
            stop = min(ends[number], end)
            queries.append(stop - begin)
            keys.append(stop - first)
            number += 1
        carried_on = queries[1] if first < begin else 0
        longest_q, longest_k = (max(b - a for a, b in zip(s, s[1:], strict=False)) for s in (queries, keys))
        cu_seqlens = (torch.tensor(s, dtype=torch.int32).to(device, non_blocking=True) for s in (queries, keys))
        return cls("thd", *cu_seqlens, None, None, longest_q, longest_k, first=first, end=end, carried_on=carried_on)


@dataclass
class ContextRow(PackedSeqParams):
    """This rank's part of a row, `[positions / ranks]`, its two pieces one after the other.

    To megatron-core it is one sequence, whose rotary angles are `rotary`'s.

    Attributes:
        pieces: of the part, in its order.
        position_ids: int64 `[positions / ranks]`, the distance of each position from its document's beginning.
        group: the ranks that share the row.
    """

    pieces: tuple[Piece, ...] = ()
    position_ids: Tensor | None = None
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], position_ids: Tensor, group: dist.ProcessGroup) -> ContextRow:
        """Of a row of documents with these lengths (on the host), whose `position_ids` are int64 `[1, positions / ranks]`
        of this rank's part."""
        device = position_ids.device
        lengths = [length for length in lengths if length]
        bounds = piece_bounds(sum(lengths), group.rank(), group.size())
        pieces = tuple(Piece.of(lengths, begin, end, device) for begin, end in bounds)
        whole = torch.tensor([0, position_ids.numel()], dtype=torch.int32).to(device, non_blocking=True)
        longest = max(lengths)
        return cls(
            "thd", whole, whole, None, None, longest, longest, pieces=pieces, position_ids=position_ids[0], group=group
        )

    def rotary(self, angles: Tensor) -> Tensor:
        """Angles of positions 0, 1, ... `[n, 1, 1, d]` into those of this rank's positions."""
        assert self.position_ids is not None
        return angles.index_select(0, self.position_ids)

    def attend(self, attend: Callable[[Tensor, Tensor, Tensor, Piece], Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of this rank's queries, keys and values `[positions / ranks, heads, d]` over the row.

        `attend(q, k, v, piece)` is called for each piece, with the keys and values that its documents have, and gives
        `[queries, heads * d]`.
        """
        keys, values = self.whole(k, v)
        parts = zip(q.chunk(2), self.pieces, strict=True)
        return torch.cat([attend(own, keys[p.first : p.end], values[p.first : p.end], p) for own, p in parts])

    def whole(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[positions / ranks, heads, d]` of this rank -> those of the row, `[positions, heads, d]`, in its
        order. Gradients of ranks are summed."""
        assert self.group is not None
        ranks, heads = self.group.size(), key.size(1)
        both = gather_from_sequence_parallel_region(torch.cat([key, value], dim=1), group=self.group)
        parts = both.chunk(2 * ranks)
        # rank r's pieces are r and 2 * ranks - 1 - r
        order = [*range(0, 2 * ranks, 2), *range(2 * ranks - 1, 0, -2)]
        return torch.cat([parts[n][:, :heads] for n in order]), torch.cat([parts[n][:, heads:] for n in order])
