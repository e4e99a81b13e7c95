"""First weights, the same for every layout.

Each parameter is drawn whole from a generator seeded by (run seed, its global name), and a rank keeps its slice; names and
slices are those of the distributed checkpoint. So a run begins from the same numbers at any TP x PP, on host and GPU.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.module import MegatronModule

from megatron_vlm.config.model import LanguageConfig

#: one key a layer instead of one stacked tensor a block, so that layers keep their own names
SHARDING_METADATA = {"non_homogeneous_layers": True}


def sharded_leaves(node: object) -> Iterator[ShardedTensor]:
    """Every tensor shard in a sharded state, factories built."""
    if isinstance(node, ShardedTensorFactory):
        yield from sharded_leaves(node.build())
    elif isinstance(node, ShardedTensor):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from sharded_leaves(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from sharded_leaves(value)


def sharded_parameters(chunks: Sequence[MegatronModule]) -> Iterator[ShardedTensor]:
    """Every parameter shard of this rank, with its global name, shape and offset; `.data` is the parameter's storage."""
    for chunk in chunks:
        yield from sharded_leaves(chunk.sharded_state_dict(metadata=dict(SHARDING_METADATA)))


def note_global_names(chunks: Sequence[MegatronModule]) -> None:
    """Give every parameter an attribute `global_name`: what checkpoints call it, without the layout's own counting of
    layers. What they leave out has its local name."""
    for chunk in chunks:
        state = chunk.sharded_state_dict(metadata=dict(SHARDING_METADATA))
        for name, parameter in chunk.named_parameters():
            entry = state.get(name)
            found = isinstance(entry, (ShardedTensor, ShardedTensorFactory))
            parameter.global_name = entry.key if found else name


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _standard_deviation(name: str, shape: Sequence[int], language: LanguageConfig) -> float:
    fan_in = 1 / math.sqrt(shape[-1])
    if name.endswith(".lora_a"):
        return fan_in
    if not name.startswith("language_model."):
        is_table = "position_embeddings" in name or "_token" in name
        return 0.02 if is_table else fan_in
    std = language.init_std if language.init_std is not None else fan_in
    writes_residual = name.endswith(("self_attention.linear_proj.weight", "mlp.linear_fc2.weight"))
    if language.depth_scaled_init and writes_residual:
        std /= math.sqrt(2 * language.num_layers)
    return std


def draw_whole(name: str, shape: Sequence[int], language: LanguageConfig, seed: int) -> torch.Tensor:
    """First values, fp32, of the matrix or table that has the global `name` and `shape`."""
    tensor = torch.empty(tuple(shape))
    generator = _generator(seed, name)
    std = _standard_deviation(name, shape, language)
    if language.init_method == "trunc_normal":
        torch.nn.init.trunc_normal_(tensor, std=std, a=-3 * std, b=3 * std, generator=generator)
    else:
        tensor.normal_(0.0, std, generator=generator)
    return tensor


@torch.no_grad()
def initialize_parameters(chunks: Sequence[MegatronModule], language: LanguageConfig, seed: int) -> None:
    """Fill matrices and tables; biases are zero; norm gains and layer scales keep their module's one."""
    whole: dict[str, torch.Tensor] = {}
    for shard in sharded_parameters(chunks):
        if shard.key.endswith(".bias") and shard.data is not None:
            shard.data.zero_()
        shape = tuple(shard.global_shape)
        drawn = len(shape) > 1 or "class_token" in shard.key
        if not drawn or shard.data is None or shard.key.endswith(".lora_b"):  # zero: no update at first
            continue
        if shard.key not in whole:
            whole.clear()  # shards of one name follow each other; keep one whole tensor at a time
            whole[shard.key] = draw_whole(shard.key, shape, language, seed)
        offset = shard.global_offset
        part = whole[shard.key][tuple(slice(o, o + n) for o, n in zip(offset, shard.local_shape, strict=True))]
        shard.data.copy_(part)
