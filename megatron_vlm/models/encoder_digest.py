"""A name for an encoder's weights, the same in every layout and precision that holds the same values."""

from __future__ import annotations

import hashlib

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from megatron_vlm.models.initialization import SHARDING_METADATA, sharded_leaves
from megatron_vlm.models.vision import VisionEncoder


@torch.no_grad()
def encoder_digest(encoder: VisionEncoder, group: dist.ProcessGroup | None = None) -> str:
    """sha256, in hex, over name, shape and values of every tensor that checkpoints have of the encoder.

    Collective over `group`, the tensor-parallel one (None: the encoder is whole on this rank): where its ranks have parts of
    a tensor, these are put together, one tensor at a time. Values count as fp32, so a bf16 encoder and an fp32 one of the
    same numbers have one name.
    """
    shards: dict[str, list[ShardedTensor]] = {}
    for shard in sharded_leaves(encoder.sharded_state_dict(metadata=dict(SHARDING_METADATA))):
        shards.setdefault(shard.key, []).append(shard)
    digest = hashlib.sha256()
    for name in sorted(shards):
        shape = tuple(shards[name][0].global_shape)
        data = [shard.data for shard in shards[name] if shard.data is not None]
        if not data:
            continue
        whole = torch.zeros(shape, dtype=torch.float32, device=data[0].device)
        for shard in shards[name]:
            at = tuple(slice(o, o + n) for o, n in zip(shard.global_offset, shard.local_shape, strict=True))
            whole[at] = shard.data.float()
        if group is not None and sum(part.numel() for part in data) < whole.numel():
            dist.all_reduce(whole, group=group)
        whole += 0.0  # a sum of parts makes 0 of -0, so it has to be one everywhere
        digest.update(f"{name} {list(shape)}\n".encode())
        digest.update(whole.cpu().contiguous().numpy().data.cast("B"))
    return digest.hexdigest()
