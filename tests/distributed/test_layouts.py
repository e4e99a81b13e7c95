"""The loss of a step does not depend on the layout. fp32; pictures enter at step 2 of 5.

Tolerances: losses 2e-6 absolute. Gradient norms 3e-5 relative: each rank sums its squares in fp32, in another order (the
gradients themselves agree to 1e-6, see test_gradients).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, assert_equal_steps, configuration, steps

pytestmark = pytest.mark.distributed

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2": (2, TP2),
    "tp2+sp": (2, {**TP2, "sequence_parallel": True}),
    "pp2": (2, PP2),
    "pp2, 3 + 1 layers": (2, {**PP2, "num_layers_in_last_pipeline_stage": 1}),
    "tp2 x pp2 + sp": (4, {**TP2, **PP2, "sequence_parallel": True}),
    "dp2": (2, {}),
    "dp2 plain optimiser": (2, {"use_distributed_optimizer": False}),
    "dp2 overlapped": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}),
    "pp2 x vp2": (2, {**PP2, "virtual_pipeline_model_parallel_size": 2}),
    "full recompute": (1, {"recompute": "full"}),
}


@pytest.fixture(scope="module")
def reference(data: Path) -> list[dict[str, float]]:
    return run_ranks(1, steps, configuration(data), 5)[0]


def test_the_reference_sees_pictures_from_step_2(reference: list[dict[str, float]]) -> None:
    assert ["caption" in record for record in reference] == [False, False, True, True, True]


@pytest.mark.parametrize("name", LAYOUTS)
def test_losses_and_gradient_norms_equal(name: str, data: Path, reference: list[dict[str, float]]) -> None:
    ranks, parallel = LAYOUTS[name]
    results = run_ranks(ranks, steps, configuration(data, parallel), 5)
    assert all(result == results[0] for result in results), "ranks report different numbers"
    assert_equal_steps(results[0], reference)
