"""The distributed optimiser's state as each data-parallel rank holds it, named as parts of whole tensors.

megatron-core's `fully_reshardable` format, the one that every layout can load, gathers all shards into whole tensors on
every rank before a save, while training waits. What is loaded are parts of global tensors by name, wherever their borders
are; so here each rank names its own flat ranges as boxes of those tensors, which moves nothing, and ranks share the writing.
Names, shapes and the way of loading are megatron-core's.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase, ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_vlm.training.checkpoint.flat_ranges import boxes_of

_PREFIX = "optimizer.state"


@contextmanager
def own_shards(optimizer: Any) -> Iterator[None]:
    """Inside, `optimizer.sharded_state_dict` for saving has each rank's own shards instead of gathered ones."""
    if not isinstance(optimizer, DistributedOptimizer):
        yield
        return

    def own(model_state: dict[str, Any], is_loading: bool = False, metadata: dict[str, Any] | None = None) -> Any:
        assert not is_loading
        return _shards(optimizer, model_state)

    optimizer.sharded_param_state_fully_reshardable = own
    # megatron-core collects garbage after its gather; nothing was gathered, and a look at every object takes longer than
    # all the rest of a save's stop
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        del optimizer.sharded_param_state_fully_reshardable


def _shards(optimizer: DistributedOptimizer, model_state: dict[str, Any]) -> dict[str, ShardedTensor]:
    """By names that mean nothing: what is loaded is found by its key. In one map, of which nothing is left in the part that
    all ranks have in common."""
    named, _ = extract_matching_values(model_state, lambda value: isinstance(value, ShardedBase))
    by_parameter = {id(sharded.data): sharded for sharded in nested_values(named)}
    state: dict[str, ShardedTensor] = {}
    for ranges in optimizer.gbuf_ranges:
        (of_buckets,) = ranges.values()
        for bucket in of_buckets:
            for parameter, held in bucket["param_map"].items():
                own, sharded = held["param"], by_parameter[id(parameter)]
                tensors = optimizer._get_main_param_and_optimizer_states(parameter)
                for key, flat in tensors.items():
                    if key != "step":
                        for part in _parts(sharded, f"{_PREFIX}.{key}", flat, own.start, own.end):
                            state[f"{len(state)}"] = part
    return state


def _parts(sharded: Any, prefix: str, flat: torch.Tensor, start: int, stop: int) -> Iterator[ShardedTensor]:
    """`flat`, the values `start` to `stop` - 1 of this rank's part of a parameter, as boxes of its global tensors."""
    for leaf in nested_values(sharded.build()) if isinstance(sharded, ShardedTensorFactory) else [sharded]:
        whole: torch.Tensor = leaf.data
        begin = whole.storage_offset() - sharded.data.storage_offset()
        if not whole.is_contiguous() or whole.untyped_storage().data_ptr() != sharded.data.untyped_storage().data_ptr():
            raise RuntimeError(f"{leaf.key}: not a consecutive part of its parameter, so that its shards cannot be named")
        first, last = max(start, begin), min(stop, begin + whole.numel())
        if first >= last:
            continue
        for box in boxes_of(tuple(whole.shape), first - begin, last - begin):
            at = first - start + box.at
            part = flat[at : at + math.prod(box.size)].view(box.size)
            yield replace(
                leaf,
                key=f"{prefix}.{leaf.key}",
                data=part,
                dtype=part.dtype,
                local_shape=box.size,
                global_offset=tuple(a + b for a, b in zip(leaf.global_offset, box.offset, strict=True)),
                axis_fragmentations=None,
                # no other data-parallel rank has it
                replica_id=(*leaf.replica_id[:-1], 0),
            )
