"""What is asked of megatron-core in other words from one release to the next is what the installed one takes."""

from __future__ import annotations

import inspect
import logging

import pytest
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_vlm.parallel.core_release import _NOTICES, mlp_spec, quiet_notices, sharded_save_options


def test_a_save_is_planned_by_megatron_core_itself() -> None:
    """0.19 would import nvidia-resiliency-ext by default."""
    call = inspect.signature(TorchDistSaveShardedStrategy.async_save).bind(None, {}, "folder", **sharded_save_options())
    call.apply_defaults()
    assert call.arguments.get("async_strategy", "mcore") == "mcore"


def test_the_mlp_of_a_layer_is_in_the_words_that_its_release_prefers() -> None:
    made = mlp_spec(MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear))
    assert TransformerLayerSubmodules(mlp=made).mlp is made
    if hasattr(MLP, "as_mlp_submodule"):
        assert made.func == MLP.as_mlp_submodule
        assert made.keywords["submodules"].linear_fc2 is RowParallelLinear
    else:
        assert made.module is MLP
        assert made.submodules.linear_fc2 is RowParallelLinear


def test_notices_that_say_nothing_are_left_out_and_others_are_not(caplog: pytest.LogCaptureFixture) -> None:
    quiet_notices()
    quiet_notices()
    for source, words in _NOTICES.items():
        logger = logging.getLogger(source)
        logger.warning(f"save: {words} and will be removed")
        logger.warning("a tensor is missing")
        assert [f.name for f in logger.filters] == [words]
    assert [record.getMessage() for record in caplog.records] == ["a tensor is missing"] * len(_NOTICES)
