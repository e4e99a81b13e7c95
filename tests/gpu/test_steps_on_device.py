"""A few steps on GPUs: against the CPU, between layer specs, precisions and layouts. All begin with the same weights.

Tolerances follow from what the numbers are rounded to (fp32 2^-24, bf16 2^-9, e4m3 2^-4 a value; a loss is a mean over
thousands of tokens). They were set before anybody ran these tests on a GPU: a failure says by how much they were wrong, or
that something is.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu.drawn_rank import launch, layout
from tests.gpu.needed import ON_A_GPU, need_engine, need_gpus, need_recipe

pytestmark = ON_A_GPU

STEPS = 3
FP32 = ["--parallel.precision", "fp32", "--parallel.layer_spec", "host"]
BF16 = ["--parallel.precision", "bf16"]


@pytest.fixture(scope="module")
def on_one_gpu() -> dict[str, Any]:
    return launch(1, "tiny", STEPS, *BF16)


def assert_near(found: dict[str, Any], expected: dict[str, Any], loss: float, norm: float) -> None:
    """Losses `loss` nats apart at most, gradient norms by a share of `norm`."""
    assert found["losses"] == pytest.approx(expected["losses"], abs=loss)
    assert found["grad_norms"] == pytest.approx(expected["grad_norms"], rel=norm)
    assert found["losses"][-1] < found["losses"][0]


def test_a_gpu_computes_what_the_cpu_does_in_fp32() -> None:
    """The whole path: kernels of the input, attention by document, schedule, reduction, update."""
    assert_near(launch(1, "tiny", STEPS, *FP32), launch(1, "tiny", STEPS, *FP32, on_cpu=True), 2e-4, 1e-3)


def test_bf16_is_near_fp32(on_one_gpu: dict[str, Any]) -> None:
    assert on_one_gpu["memory"] > 0
    assert_near(on_one_gpu, launch(1, "tiny", STEPS, *FP32), 3e-2, 5e-2)


def test_layers_of_transformer_engine_are_near_the_host_s() -> None:
    need_engine()
    host = launch(1, "tiny", STEPS, *BF16, "--parallel.layer_spec", "host")
    engine = launch(1, "tiny", STEPS, *BF16, "--parallel.layer_spec", "transformer_engine")
    assert (host["layer_spec"], engine["layer_spec"]) == ("host", "transformer_engine")
    assert_near(engine, host, 2e-2, 5e-2)


@pytest.mark.parametrize("recipe", ["delayed", "current", "blockwise", "mxfp8"])
def test_fp8_is_near_bf16(recipe: str, on_one_gpu: dict[str, Any]) -> None:
    need_recipe(recipe)
    assert_near(launch(1, "tiny", STEPS, *BF16, "--precision.fp8", recipe), on_one_gpu, 0.1, 0.2)


LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_model_parallel_size": 2},
    "tp2+sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2": {"pipeline_model_parallel_size": 2},
    "pp2 x vp2": {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2},
    "cp2": {"context_parallel_size": 2},
    "dp2 overlapped": {"overlap_grad_reduce": True, "overlap_param_gather": True},
}


@pytest.mark.parametrize("precision", ["bf16", "delayed", "current"])
@pytest.mark.parametrize("name", [None, "pp2", "dp2 overlapped"])
def test_captured_blocks_change_nothing(name: str | None, precision: str) -> None:
    """Five steps: three before the capture, two that replay it."""
    need_engine()
    words = [*BF16, "--parallel.layer_spec", "transformer_engine"]
    if precision != "bf16":
        need_recipe(precision)
        words += ["--precision.fp8", precision]
    if name is not None:
        need_gpus(2)
        words += layout(**LAYOUTS[name])
    ranks = 1 if name is None else 2
    plain = launch(ranks, "tiny", 5, *words)
    captured = launch(ranks, "tiny", 5, *words, "--performance.cuda_graphs", "mlp")
    assert (plain["captures"], captured["captures"]) == (0, 1)
    assert_near(captured, plain, 1e-3, 1e-2)


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_gpus_train_as_one(name: str, on_one_gpu: dict[str, Any]) -> None:
    need_gpus(2)
    assert_near(launch(2, "tiny", STEPS, *layout(**LAYOUTS[name]), *BF16), on_one_gpu, 2e-2, 2e-2)


def test_two_gpus_train_as_one_in_fp8(on_one_gpu: dict[str, Any]) -> None:
    need_gpus(2)
    need_recipe("current")
    words = [*layout(**LAYOUTS["tp2+sp"]), *BF16, "--precision.fp8", "current"]
    assert_near(launch(2, "tiny", STEPS, *words), on_one_gpu, 0.1, 0.2)
