"""Which ranks share layers: those of the language, and an encoder that each rank of a model-parallel group has whole."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedBase
from megatron.core.process_groups_config import ProcessGroupCollection


def groups_of_one() -> ProcessGroupCollection:
    """The groups of layers that are split over nothing: this rank alone in each."""
    alone = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    return ProcessGroupCollection(tp=alone, cp=alone, pp=alone)


def language_groups() -> ProcessGroupCollection:
    """The groups of the language layers: megatron-core's, but for context parallelism, which is attention's own here
    (`context_row`). To everything else of megatron-core's layers a rank's part of a row is a row.

    Data parallelism, the optimiser and the schedules ask megatron-core's `parallel_state` and know those ranks.
    """
    groups = ProcessGroupCollection.use_mpu_process_groups()
    if parallel_state.get_context_parallel_world_size() > 1:
        groups.cp = groups_of_one().cp
    return groups


def mark_replicated(module: torch.nn.Module) -> None:
    """Its parameters count once in the norm of the gradient: on the first rank of the model-parallel group."""
    elsewhere = parallel_state.get_pipeline_model_parallel_rank() > 0
    for parameter in module.parameters():
        parameter.tensor_model_parallel = False  # type: ignore[attr-defined]
        if elsewhere:
            parameter.shared = True  # type: ignore[attr-defined]


def replicated_state(state: dict[str, Any], prefixes: tuple[str, ...]) -> None:
    """In a sharded state, what begins with one of `prefixes` is the same on all ranks of the model-parallel group: one of
    them writes it. In place."""
    stage, rank = parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_tensor_model_parallel_rank()
    chosen = {name: value for name, value in state.items() if name.startswith(prefixes)}
    for sharded in nested_values(chosen):
        if isinstance(sharded, ShardedBase):
            last = sharded.replica_id[-1] if isinstance(sharded.replica_id, tuple) else sharded.replica_id
            sharded.replica_id = (stage, rank, last)
