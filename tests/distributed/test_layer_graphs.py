"""Feed-forward blocks that are captured and replayed: when, with which shapes, and that a step's numbers stay.

Real layers, schedules and megatron-core's own helper, on CPU ranks; what Transformer Engine would capture is run as it is,
by a stand-in that keeps to a graph's rule: nothing is launched again before its backward pass has used what it left.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.transformer import cuda_graphs

from megatron_vlm.config import checks
from megatron_vlm.config.run import RunConfig
from megatron_vlm.models import block_options
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration, one_step

pytestmark = pytest.mark.distributed

#: a border after the first capture, at which other modules are trained
STAGES = (
    "[{name: first, until_steps: 5, sources: {text: 1.0}, freeze: [vision, projector]}, "
    "{name: second, sources: {text: 0.5, captions: 0.5}}]"
)
FIELDS = {"curriculum.stages": STAGES, "schedule.train_steps": 10}
GRAPHS = {"performance.cuda_graphs": "mlp"}


class _Graph:
    """One layer's block for one micro-batch."""

    launched: list[tuple[int, int]] = []

    def __init__(self, layer: torch.nn.Module, number: int, shape: tuple[int, ...]) -> None:
        self.layer, self.number, self.shape, self.busy = layer, number, shape, False

    def __call__(self, hidden_states: torch.Tensor, is_first_microbatch: bool) -> tuple[torch.Tensor, ...]:
        assert hidden_states.shape == self.shape
        assert not self.busy, "launched again before its backward pass"
        self.busy = True
        (output,) = self.layer._te_cuda_graph_capture(hidden_states)
        output.register_hook(self._used)
        _Graph.launched.append((self.layer.layer_number, self.number))
        return (output,)

    def _used(self, gradient: torch.Tensor) -> None:
        self.busy = False

    def reset(self) -> None:
        pass


def _make_graphs(layers: Sequence[torch.nn.Module], samples: Sequence[Any], **options: Any) -> list[_Graph]:
    """In the order in which Transformer Engine gives them: chunk by chunk, micro-batch by micro-batch, layer by layer."""
    made, at, counts = [], 0, options["_num_layers_per_chunk"]
    micro_batches = len(samples) // len(layers)
    for count in counts:
        for number in range(micro_batches):
            made += [_Graph(layer, number, samples[0][0].shape) for layer in layers[at : at + count]]
        at += count
    return made


def _stand_in(choose: Callable[..., Any]) -> None:
    """In a rank of its own: the refusals of a machine without Transformer Engine are left out, and so is that."""
    checks.performance_problems = lambda config: []  # type: ignore[assignment]
    block_options.choose_kernels = lambda performance, *a, **k: choose(replace(performance, cuda_graphs="none"), *a, **k)
    cuda_graphs.HAVE_TE_GRAPHS = True
    cuda_graphs.make_graphed_callables = _make_graphs
    for module in ("cuda_graphs", "transformer_layer"):
        sys.modules[f"megatron.core.transformer.{module}"].is_te_min_version = lambda *a, **k: True  # type: ignore


def _steps(config: RunConfig) -> tuple[list[dict[str, float]], int, list[tuple[int, int]]]:
    """Steps, how many captures they needed, and what was launched in the last."""
    captured = config.performance.cuda_graphs != "none"
    if captured:
        _stand_in(block_options.choose_kernels)
    run = Run(config)
    run._start()
    if captured:  # a replay asks whether it imports
        engine = types.ModuleType("transformer_engine")
        engine.pytorch = types.ModuleType("transformer_engine.pytorch")  # type: ignore[attr-defined]
        sys.modules |= {"transformer_engine": engine, "transformer_engine.pytorch": engine.pytorch}
    found = []
    for _ in range(config.total_steps):
        _Graph.launched = []
        found.append(one_step(run))
    run.data.close()
    return found, run.engine.graphs.captures, _Graph.launched


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "pp2": (2, PP2),
    "cp2 x tp2 + sp": (4, {**TP2, "context_parallel_size": 2, "sequence_parallel": True}),
    "dp2, overlapped": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}),
    "pp2 x vp2": (2, {**PP2, "virtual_pipeline_model_parallel_size": 2}),
}


@pytest.mark.parametrize("name", [*list(LAYOUTS)[:2], *(pytest.param(n, marks=pytest.mark.slow) for n in list(LAYOUTS)[2:])])
def test_steps_are_those_without(name: str, data: Path) -> None:
    ranks, parallel = LAYOUTS[name]
    plain = run_ranks(ranks, _steps, configuration(data, parallel, **FIELDS))
    captured = run_ranks(ranks, _steps, configuration(data, parallel, **FIELDS, **GRAPHS))
    assert len(plain[0][0]) == 10
    for with_graphs, without in zip(captured, plain, strict=True):
        assert with_graphs[0] == without[0]
        assert (with_graphs[1], without[1]) == (2, 0), "once a stage, after three steps"
        assert not without[2]
    stages = parallel.get("pipeline_model_parallel_size", 1)
    micro_batches = 8 // (2 * (2 if name.startswith("dp2") else 1))
    for with_graphs in captured:
        launched = with_graphs[2]
        assert len(launched) == micro_batches * 4 // stages, "each layer of the stage, each micro-batch"
        # a pipeline has several micro-batches under way, each with graphs of its own
        assert {number for _, number in launched} == set(range(micro_batches if stages > 1 else 1))


def test_rows_of_another_length_are_captured_anew(data: Path) -> None:
    stages = STAGES.replace("{name: second,", "{name: second, sequence_length: 64,").replace(
        ", freeze: [vision, projector]", ""
    )
    fields = {**FIELDS, "curriculum.stages": stages}
    (plain,) = run_ranks(1, _steps, configuration(data, **fields))
    (captured,) = run_ranks(1, _steps, configuration(data, **fields, **GRAPHS))
    assert captured[0] == plain[0]
    assert captured[1] == 2
