"""What this package asks of megatron-core in other words from one release to the next.

Two lines are supported: 0.16.1, the newest for Python 3.11, and 0.19, which needs Python 3.12. Every difference that is met
with a choice stands here (host.py has those of the names that it replaces). The choice asks megatron-core for a name or an
argument, not for its version: a release between the two is like one or the other.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig


def sharded_save_options() -> dict[str, Any]:
    """Arguments of `TorchDistSaveShardedStrategy.async_save` beside state and folder.

    0.19 plans a save with nvidia-resiliency-ext unless told otherwise, which nothing here needs; the plan of megatron-core
    itself is the one that 0.16 makes.
    """
    known = inspect.signature(TorchDistSaveShardedStrategy.async_save).parameters
    return {"async_strategy": "mcore"} if "async_strategy" in known else {}


def mlp_spec(submodules: MLPSubmodules) -> Any:
    """What `TransformerLayerSubmodules.mlp` holds for megatron-core's MLP.

    0.16 builds a ModuleSpec. 0.19 calls a function with the layer's process groups, and takes a ModuleSpec too, with a
    complaint for each.
    """
    if hasattr(MLP, "as_mlp_submodule"):
        return partial(MLP.as_mlp_submodule, submodules=submodules)
    return ModuleSpec(module=MLP, submodules=submodules)


def graph_options(parts: Sequence[str]) -> dict[str, Any]:
    """Fields of TransformerConfig by which Transformer Engine captures these parts of each layer; none for none.

    They are `cuda_graph_scope` in 0.16 and `cuda_graph_modules` in 0.19.
    """
    if not parts:
        return {}
    known = {field.name for field in fields(TransformerConfig)}
    name = "cuda_graph_modules" if "cuda_graph_modules" in known else "cuda_graph_scope"
    return {"cuda_graph_impl": "transformer_engine", name: list(parts)}


#: what 0.19 warns of at every run, though it is right here: where it comes from, words of it
_NOTICES = {
    "megatron.core.dist_checkpointing.strategies.torch": "MCore's async save is deprecated",  # its plan alone is used
    "megatron.core.dist_checkpointing.strategies.common": "load_common is deprecated",  # 0.16 reads nothing but common.pt
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",  # what comes after it is not in 0.16
    "megatron.core.distributed.distributed_data_parallel": "full_param_layout not provided",  # the layout is its own then
}


class _Without(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return self.name not in str(record.msg)


def quiet_notices() -> None:
    """Leave out warnings of megatron-core that a user can do nothing about. Idempotent."""
    for source, words in _NOTICES.items():
        logger = logging.getLogger(source)
        if not any(isinstance(known, _Without) for known in logger.filters):
            logger.addFilter(_Without(words))
