"""Every distinct rank of a layout of any size, built without memory or other machines: meta tensors, fake process groups.

The process groups are megatron-core's own, over torch's fake backend, which knows a rank's place among any number of others
and sends nothing. Ranks that differ by their data- or context-parallel place alone hold the same parameters: the first
stands for all.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.run import RunConfig
from megatron_vlm.models.initialization import sharded_parameters
from megatron_vlm.models.vlm import VisionLanguageModel
from megatron_vlm.parallel import host, topology

VOCABULARY = 50277
#: name of a parameter in the whole model -> where each rank's part of it begins, and how large it is
Parts = dict[str, set[tuple[tuple[int, ...], tuple[int, ...]]]]


@dataclass
class RankCount:
    """Parameters of one rank.

    Attributes:
        stage, tensor: its place.
        layers: language layers of each of its chunks.
        held: parameters that it holds, by module.
        counted: those of them that count once in the whole model, as megatron-core's gradient norm counts: a shard of its
            own, or what all tensor-parallel ranks have on the first of them; no copy of a tied embedding.
    """

    stage: int
    tensor: int
    layers: list[int]
    held: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)


@dataclass
class LayoutCount:
    """Of all distinct ranks. `shapes` are global ones by name, `parts` what of them some rank says is its own to write."""

    ranks: list[RankCount] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    parts: Parts = field(default_factory=dict)

    @property
    def counted(self) -> Counter[str]:
        return sum((rank.counted for rank in self.ranks), Counter())

    def untiled(self) -> list[str]:
        """Names whose parts are not the whole, each position once."""
        wrong = []
        for name, shape in self.shapes.items():
            parts = sorted(self.parts.get(name, ()))
            inside = all(b + n <= whole for begin, size in parts for b, n, whole in zip(begin, size, shape, strict=True))
            apart = not any(_overlap(one, other) for at, one in enumerate(parts) for other in parts[at + 1 :])
            if not (inside and apart and sum(prod(size) for _, size in parts) == prod(shape)):
                wrong.append(name)
        return wrong


def _overlap(one: tuple[tuple[int, ...], tuple[int, ...]], other: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
    return all(a < b + m and b < a + n for a, n, b, m in zip(*one, *other, strict=True))


def count_layout(config: RunConfig, gpus: int) -> LayoutCount:
    """Build the model of each distinct rank of the configuration's layout on `gpus` ranks, one after another.

    For a process that has no process group and whose other work is done: it leaves megatron-core's host platform installed.
    """
    host.install()
    parallel, found = config.parallel, LayoutCount()
    tensor, stages = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    for stage in range(stages):
        for rank in range(tensor):
            _count_rank(config, gpus, stage * (gpus // stages) + rank, found)
    return found


def _count_rank(config: RunConfig, gpus: int, rank: int, found: LayoutCount) -> None:
    parallel = config.parallel
    virtual = parallel.virtual_pipeline_model_parallel_size
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=gpus)
    # as topology.initialize does, without the gloo groups beside them: gloo would look for the other ranks
    parallel_state.initialize_model_parallel(
        parallel.tensor_model_parallel_size,
        parallel.pipeline_model_parallel_size,
        virtual if virtual > 1 else None,
        context_parallel_size=parallel.context_parallel_size,
        create_gloo_process_groups=False,
    )
    place = topology.initialize(parallel, seed=0)
    try:
        assert (place.world_size, place.replica_rank) == (gpus, 0)
        with torch.device("meta"):
            chunks = [
                VisionLanguageModel(
                    config,
                    TokenCounts(VOCABULARY, 0, 1, 2),
                    "cpu",
                    pre_process=place.on_first_stage and number == 0,
                    post_process=place.on_last_stage and number == virtual - 1,
                    vp_stage=number if virtual > 1 else None,
                )
                for number in range(virtual)
            ]
        layers = [len(chunk.language_model.decoder.layers) for chunk in chunks]
        count = RankCount(place.pipeline_rank, place.tensor_rank, layers)
        for chunk in chunks:
            for name, parameter in chunk.named_parameters():
                assert parameter.device.type == "meta", f"{name} takes memory"
                module = name.partition(".")[0].removesuffix("_model")
                count.held[module] += parameter.numel()
                if param_is_not_shared(parameter) and param_is_not_tensor_parallel_duplicate(parameter):
                    count.counted[module] += parameter.numel()
        found.ranks.append(count)
        for shard in sharded_parameters(chunks):
            found.shapes[shard.key] = tuple(shard.global_shape)
            if not any(_as_tuple(shard.replica_id)):
                part = (tuple(shard.global_offset), tuple(shard.local_shape))
                parts = found.parts.setdefault(shard.key, set())
                assert part not in parts, f"two ranks would write the same part of {shard.key}"
                parts.add(part)
    finally:
        topology.shutdown()


def _as_tuple(replica: int | tuple[int, ...]) -> tuple[int, ...]:
    return (replica,) if isinstance(replica, int) else replica
