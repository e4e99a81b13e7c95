"""Pictures shared out among ranks that each have the whole encoder, and their rows brought together again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def picture_shares(costs: Sequence[int], ranks: int) -> list[tuple[int, int]]:
    """(first, end) of each rank's pictures: neighbours, in the ranks' order, of like cost.

    A picture goes to the rank in whose equal share of the whole cost its middle lies, so no rank has more than its share and
    one picture. Ranks may have none.
    """
    total = sum(costs)
    bounds, at, done = [0], 0, 0
    for rank in range(1, ranks):
        while at < len(costs) and (2 * done + costs[at]) * ranks <= 2 * total * rank:
            done += costs[at]
            at += 1
        bounds.append(at)
    bounds.append(len(costs))
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def gather_rows(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """`[counts[rank], h]` of each rank of the group -> `[sum(counts), h]` in the ranks' order, on all of them.

    Shares are padded to the longest: collectives of one size are what every backend has.
    """
    longest = max(counts)
    if longest == 0:  # a group among several that share few pictures
        return rows
    whole = rows.new_empty(len(counts), longest, rows.size(1))
    dist.all_gather_into_tensor(whole.flatten(0, 1), _padded(rows, [len(rows)], longest).flatten(0, 1), group=group)
    return torch.cat([part[:count] for part, count in zip(whole, counts, strict=True)])


def _padded(rows: Tensor, counts: Sequence[int], longest: int) -> Tensor:
    """`[sum(counts), h]` -> `[ranks, longest, h]`: each rank's rows, and zeros behind them."""
    padded = rows.new_zeros(len(counts), longest, rows.size(1))
    for rank, part in enumerate(rows.split(list(counts))):
        padded[rank, : len(part)] = part
    return padded


class _GatheredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup) -> Tensor:  # type: ignore[no-untyped-def]
        rank = dist.get_rank(group)
        ctx.own = sum(counts[:rank]), counts[rank]
        return gather_rows(rows, counts, group)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        first, count = ctx.own
        return grad[first : first + count], None, None


def gathered_rows(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """`gather_rows` whose gradient is, on each rank, that of its own rows. All ranks must have the same gradient of the
    whole, as tensor-parallel ranks have of what goes into their blocks: nothing is sent."""
    whole: Tensor = _GatheredRows.apply(rows, tuple(counts), group)
    return whole


class _SummedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.counts, ctx.group = counts, group
        return gather_rows(rows, counts, group)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        return sum_rows(grad, ctx.counts, ctx.group), None, None


def summed_rows(rows: Tensor, counts: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """`gather_rows` whose gradient is, on each rank, that of its own rows, summed over what all ranks did with them. Every
    rank's `rows` must ask for a gradient if one's do."""
    whole: Tensor = _SummedRows.apply(rows, tuple(counts), group)
    return whole


def sum_rows(whole: Tensor, counts: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """The reverse of `gather_rows`: `[sum(counts), h]` of each rank -> this rank's rows `[counts[rank], h]` of their sum."""
    longest = max(counts)
    own = whole.new_empty(longest, whole.size(1))
    dist.reduce_scatter_tensor(own, _padded(whole, counts, longest).flatten(0, 1), group=group)
    return own[: counts[dist.get_rank(group)]]


def scatter_rows(rows: Tensor | None, counts: Sequence[int], like: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The reverse of `gather_rows`, from the first rank of the group, whose `rows` are `[sum(counts), h]`, on others None.

    Returns `[counts[rank], h]`, of the dtype and on the device of `like`, whose width is h.
    """
    longest = max(counts)
    own = like.new_empty(longest, like.size(1))
    if longest == 0:
        return own
    shares = None if rows is None else list(_padded(rows.to(like), counts, longest))
    dist.scatter(own, shares, src=dist.get_global_rank(group, 0), group=group)
    return own[: counts[dist.get_rank(group)]]


def sum_gradients(parameters: Sequence[torch.nn.Parameter], group: dist.ProcessGroup) -> None:
    """Add up what the group's ranks learnt from their pictures: `main_grad` of each of these parameters, in place."""
    grads = [parameter.main_grad for parameter in parameters]  # type: ignore[attr-defined]
    if not grads or dist.get_world_size(group) == 1:
        return
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    dist.all_reduce(flat, group=group)
    at = 0
    for grad in grads:
        grad.copy_(flat[at : at + grad.numel()].view_as(grad))
        at += grad.numel()
