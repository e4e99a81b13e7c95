"""Whether replicas, data- and context-parallel ranks, still hold the same parameters, by a sum over their raw bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_vlm.parallel.topology import Topology
from megatron_vlm.training.engine import Engine, unwrap

#: integers of the width of a floating-point number
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

#: parameters that the message names
_NAMED = 8


@torch.no_grad()
def bit_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor's elements read as integers, int64 modulo 2^64, on its device. One flipped bit changes it."""
    integers = tensor.detach().contiguous().flatten().view(_INTEGERS[tensor.element_size()])
    return torch.sum(integers, dtype=torch.int64)


def differing(sums: Sequence[Sequence[int]], ranks: Sequence[int], names: Sequence[str]) -> list[str]:
    """What differs between replicas: `sums[i][j]` is parameter `names[j]` on rank `ranks[i]`. Empty where nothing does.

    The sum that most replicas have is taken for the right one; where there is no majority, all are named.
    """
    found = []
    for number, name in enumerate(names):
        held = [replica[number] for replica in sums]
        value, votes = Counter(held).most_common(1)[0]
        if votes == len(held):
            continue
        odd = [rank for rank, one in zip(ranks, held, strict=True) if one != value] if 2 * votes > len(held) else list(ranks)
        which = ", ".join(str(rank) for rank in odd)
        if 2 * votes > len(held):
            found.append(f"{name} on rank {which} differs from the other {votes} replicas")
        else:
            found.append(f"{name} differs between ranks {which}")
    return found


def compare_replicas(engine: Engine, topology: Topology) -> list[str]:
    """What differs between replicas, by parameter and rank; empty where nothing does.

    Every rank calls it, and all get the same answer. Optimiser state is not looked at: it has no replicas where the
    optimiser is distributed, and shows in the parameters where it is not. Nor are tensor-parallel copies, whose gradients
    are summed on each rank by itself: kernels that add in no fixed order let them drift by right.
    """
    from megatron.core import parallel_state

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    with engine.whole_parameters():
        named = [(f"{i}.{n}" if i else n, p) for i, c in enumerate(engine.chunks) for n, p in unwrap(c).named_parameters()]
        mine = torch.stack([bit_sum(parameter) for _, parameter in named])
    least, most = mine.clone(), mine.clone()
    dist.all_reduce(least, op=dist.ReduceOp.MIN, group=group)
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group)
    flag = (least != most).any().to(torch.float32).to(topology.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    if not flag.item():
        return []
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    ranks = dist.get_process_group_ranks(group)
    here = differing([one.tolist() for one in gathered], ranks, [name for name, _ in named])
    everywhere: list[list[str]] = [[] for _ in range(topology.world_size)]
    dist.all_gather_object(everywhere, here)
    return sorted({text for texts in everywhere for text in texts})


def replicas_message(step: int, found: Sequence[str]) -> str:
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return (
        f"data-parallel replicas differ before step {step}: {'; '.join(found[:_NAMED])}{more}. A rank's memory or "
        f"arithmetic is not to be trusted; nothing of this is saved: go on from the last checkpoint, on other hardware if "
        f"it comes again"
    )
