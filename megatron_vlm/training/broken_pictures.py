"""All ranks learn which pictures of a step did not decode, at no cost where none did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.config.pictures import BrokenPolicy
from megatron_vlm.data.broken_pictures import BrokenPicture, refuse
from megatron_vlm.data.micro_batch import MicroBatch
from megatron_vlm.data.without_pictures import without_pictures


@dataclass(frozen=True, slots=True)
class Agreed:
    """What every rank of the group knows of the coming step.

    Attributes:
        mine: the broken pictures of each micro-batch of this rank, by their number in it.
        all: those of every data-parallel rank in the group, sorted, each once: for the log. In a group that spans all ranks
            they do not depend on the layout, apart from their numbers in micro-batches.
    """

    mine: tuple[tuple[BrokenPicture, ...], ...]
    all: tuple[BrokenPicture, ...]


def count_broken(found: Sequence[Sequence[BrokenPicture]]) -> int:
    """This rank's number of broken pictures: what the caller folds into a MAX-reduction that it makes anyway."""
    return sum(map(len, found))


def agree_on_broken(
    found: Sequence[Sequence[BrokenPicture]],
    data_rank: int,
    group: dist.ProcessGroup | None,
    device: torch.device,
    most: int | None = None,
) -> Agreed:
    """Every rank of `group` calls it, once a step, and gets the same.

    Ranks of one data-parallel rank have the same micro-batches; those of them that decode say what they found, others say
    nothing, and each gets the union. Only where there is something to say, two all-gathers follow the reduction.

    Args:
        found: this rank's broken pictures, a list for each of its micro-batches. Empty lists on ranks that hold no encoder.
        data_rank: of this rank.
        group: the model-parallel group, or all ranks (None), so that the writer of the log learns of everyone's.
        device: where the group's tensors live.
        most: the largest `count_broken` over the ranks, where the caller has reduced it together with something else.
    """
    if most is None:
        count = torch.tensor([count_broken(found)], device=device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX, group=group)
        most = int(count.item())
    if not most:
        return Agreed(tuple(() for _ in found), ())
    told = [(data_rank, number, *astuple(broken)) for number, batch in enumerate(found) for broken in batch]
    heard: set[tuple[int, int, BrokenPicture]] = set()
    for text in _gathered(json.dumps(told).encode(), group, device):
        heard |= {(rank, number, BrokenPicture(*fields)) for rank, number, *fields in json.loads(text)}
    mine: list[dict[int, BrokenPicture]] = [{} for _ in found]
    for rank, number, broken in sorted(heard):
        if rank == data_rank:
            mine[number][broken.picture] = broken
    places = {(rank, number, broken.picture): broken for rank, number, broken in sorted(heard)}
    return Agreed(
        tuple(tuple(batch[picture] for picture in sorted(batch)) for batch in mine),
        tuple(sorted(places.values())),
    )


def _gathered(text: bytes, group: dist.ProcessGroup | None, device: torch.device) -> list[bytes]:
    """What every rank of the group has to say, by rank."""
    ranks = dist.get_world_size(group)
    length = torch.tensor([len(text)], device=device)
    lengths = [torch.empty_like(length) for _ in range(ranks)]
    dist.all_gather(lengths, length, group=group)
    sizes = [int(size) for size in torch.cat(lengths).tolist()]
    padded = torch.frombuffer(bytearray(text.ljust(max(sizes))), dtype=torch.uint8).to(device)
    texts: list[Tensor] = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(texts, padded, group=group)
    return [bytes(part[:size].cpu().numpy()) for part, size in zip(texts, sizes, strict=True)]


def without_broken(
    batches: Sequence[MicroBatch], agreed: Agreed, picture: PictureRows, policy: BrokenPolicy, prefixes: Sequence[str]
) -> list[MicroBatch]:
    """This rank's micro-batches of a step by the policy of `data.pictures.broken`.

    Raises:
        DataError: under `stop`, on every rank alike, with the first of the step's broken pictures.
    """
    if policy == "stop":
        if agreed.all:
            raise refuse(agreed.all[0], prefixes)
        return list(batches)
    return [
        without_pictures(batch, [broken.picture for broken in found], picture, policy)
        for batch, found in zip(batches, agreed.mine, strict=True)
    ]
