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
from collections.abc import Iterator, Sequence
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

    @classmethod
    def of(cls, lengths: Sequence[int], begin: int, end: int) -> Piece:
        """The positions `begin` to `end` of a row whose documents have these lengths, none of them 0."""
        ends = list(accumulate(lengths))
        number = bisect_right(ends, begin)
        first = start = ends[number] - lengths[number]
        queries, keys, at = [], [], begin
        while at < end:
            stop = min(ends[number], end)
            queries.append(stop - at)
            keys.append(stop - start)
            at = start = stop
            number += 1
        return cls(begin, end, first, tuple(queries), tuple(keys))

    @property
    def carried_on(self) -> bool:
        """Whether its first document began before it."""
        return self.first < self.begin


@dataclass
class ContextRow(PackedSeqParams):
    """This rank's part of a row, `[positions / ranks]`, its pieces one after the other.

    To megatron-core it is one sequence, whose rotary angles are `rotary`'s.

    Attributes:
        pieces: of the part, in its order.
        attended: the documents of the pieces, one after another, as attention takes them: packed queries, and keys of
            `whole`, under causal masks that are aligned at the bottom right.
        position_ids: int64 `[positions / ranks]`, the distance of each position from its document's beginning.
        group: the ranks that share the row.
    """

    pieces: tuple[Piece, ...] = ()
    attended: PackedSeqParams | None = None
    position_ids: Tensor | None = None
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], position_ids: Tensor, group: dist.ProcessGroup) -> ContextRow:
        """Of a row of documents with these lengths (on the host), whose `position_ids` are int64 `[1, positions / ranks]`
        of this rank's part."""
        device = position_ids.device
        lengths = [length for length in lengths if length]
        bounds = piece_bounds(sum(lengths), group.rank(), group.size())
        pieces = tuple(Piece.of(lengths, begin, end) for begin, end in bounds)
        alone = _borders([position_ids.numel()], device)
        longest = max(lengths)
        row = cls("thd", alone, alone, max_seqlen_q=longest, max_seqlen_kv=longest, pieces=pieces, group=group)
        row.attended, row.position_ids = attended(pieces, device), position_ids[0]
        return row

    def rotary(self, angles: Tensor) -> Tensor:
        """Angles of positions 0, 1, ... `[n, 1, 1, d]` into those of this rank's positions."""
        assert self.position_ids is not None
        return angles.index_select(0, self.position_ids)

    def whole(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[positions / ranks, heads, d]` of this rank -> those that its pieces attend to, each piece's from
        its first to its last, `[keys, heads, d]`. Gradients are summed over ranks."""
        assert self.group is not None
        ranks, heads = self.group.size(), key.size(1)
        gathered = gather_from_sequence_parallel_region(torch.cat([key, value], dim=1), group=self.group)
        parts = gathered.chunk(2 * ranks)
        size = parts[0].size(0)
        needed = [parts[n][first:end] for n, first, end in slices_of(self.pieces, ranks, size)]
        return torch.cat([part[:, :heads] for part in needed]), torch.cat([part[:, heads:] for part in needed])


def slices_of(pieces: Sequence[Piece], ranks: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(piece by its place in what is gathered, first, end in it) of the keys of `pieces`.

    Pieces of the row, `size` positions each, are gathered in the order 0, last, 1, last but one, ...: rank r's are r and
    2 * ranks - 1 - r.
    """
    for piece in pieces:
        for number in range(piece.first // size, -(-piece.end // size)):
            place = 2 * number if number < ranks else 2 * (2 * ranks - 1 - number) + 1
            yield place, max(piece.first - number * size, 0), min(piece.end - number * size, size)


def attended(pieces: Sequence[Piece], device: torch.device) -> PackedSeqParams:
    """`ContextRow.attended` of these pieces."""
    queries = [count for piece in pieces for count in piece.queries]
    keys = [count for piece in pieces for count in piece.keys]
    return PackedSeqParams(
        "thd", _borders(queries, device), _borders(keys, device), max_seqlen_q=max(queries), max_seqlen_kv=max(keys)
    )


def _borders(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
