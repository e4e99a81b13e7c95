"""The layout that a checkpoint is scored in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig
from megatron_vlm.evaluation.scorer import layout_for


def _trained(**parallel: Any) -> RunConfig:
    config = load_config(preset="tiny")
    return replace(config, parallel=replace(config.parallel, **parallel))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "cpu"),
        ("layer_spec", "host"),
        ("recompute", "full"),
        ("overlap_grad_reduce", True),
        ("overlap_param_gather", True),
        ("sequence_parallel", True),
        ("timeout_s", 5),
    ],
)
def test_what_is_given_holds_in_the_layout_of_the_training(field: str, value: Any) -> None:
    found = layout_for(_trained(tensor_model_parallel_size=2), 2, {field: value}, generates=True).parallel
    assert getattr(found, field) == value
    assert found.tensor_model_parallel_size == 2


def test_a_size_that_is_given_leaves_that_of_the_training() -> None:
    trained = _trained(tensor_model_parallel_size=2, recompute="full", overlap_param_gather=True, device="cpu")
    found = layout_for(trained, 2, {"pipeline_model_parallel_size": 2}).parallel
    assert (found.tensor_model_parallel_size, found.pipeline_model_parallel_size) == (1, 2)
    own = layout_for(trained, 4, {}).parallel
    assert (own.tensor_model_parallel_size, own.recompute, own.overlap_param_gather, own.device) == (
        2,
        "none",
        False,
        "auto",
    )
    assert layout_for(trained, 3, {"device": "cpu"}).parallel.tensor_model_parallel_size == 1
