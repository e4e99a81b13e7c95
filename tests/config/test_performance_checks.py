"""Recomputation, offloading, overlap and fused kernels that cannot run are refused, with a value that works."""

from __future__ import annotations

import re

import pytest

from megatron_vlm.config.checks import problems
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig

BASE = ["--data.tokenizer", "t", "--data.sources", "{text: a, captions: b}", "--schedule.train_steps", "100"]
P = "--performance."
SELECTIVE, FULL = ["--parallel.recompute", "selective"], ["--parallel.recompute", "full"]
TP2 = ["--parallel.tensor_model_parallel_size", "2", "--parallel.sequence_parallel", "true"]


def tiny(*overrides: str) -> RunConfig:
    return load_config(preset="tiny", overrides=[*BASE, *overrides])


REFUSED = [
    ([P + "recompute_modules", "[mlp]"], 1, "recompute_modules", "needs parallel.recompute: selective", SELECTIVE),
    (
        [*SELECTIVE, P + "recompute_modules", "[]"],
        *(1, "recompute_modules", "at least one", [P + "recompute_modules", "[mlp]"]),
    ),
    (
        [*SELECTIVE, P + "recompute_modules", "[layernorm]", "--parallel.layer_spec", "transformer_engine"],
        *(1, "recompute_modules", "norms are parts of the matrices", ["--parallel.layer_spec", "host"]),
    ),
    (
        [*SELECTIVE, P + "recompute_modules", "[mlp]", "--model.language.parallel_residual", "true"],
        *(1, "recompute_modules", "parallel_residual", [P + "recompute_modules", "[core_attn]"]),
    ),
    ([*FULL, P + "recompute_layers", "5"], 1, "recompute_layers", "from 1 to 4", [P + "recompute_layers", "4"]),
    ([P + "recompute_layers", "2"], 1, "recompute_layers", "need parallel.recompute: full", FULL),
    ([P + "recompute_method", "block"], 1, "recompute_layers", "need parallel.recompute: full", FULL),
    (
        [P + "recompute_vision", "true", "--curriculum.stages", "[{sources: {text: 1.0}, freeze: [vision]}]"],
        *(1, "recompute_vision", "frozen in every stage", [P + "recompute_vision", "false"]),
    ),
    ([P + "cpu_offload_layers", "4"], 1, "cpu_offload_layers", "from 0 to 3", [P + "cpu_offload_layers", "3"]),
    ([P + "cpu_offload_layers", "2", *FULL], 1, "cpu_offload_layers", "not kept", ["--parallel.recompute", "none"]),
    (
        [P + "cpu_offload_layers", "1", "--parallel.pipeline_model_parallel_size", "2"],
        *(2, "cpu_offload_layers", "without pipeline", [P + "cpu_offload_layers", "0"]),
    ),
    (
        [P + "cpu_offload_layers", "1", "--parallel.device", "cpu"],
        *(1, "cpu_offload_layers", "device is cpu", [P + "cpu_offload_layers", "0"]),
    ),
    ([P + "tp_overlap", "true"], 2, "tp_overlap", "sequence_parallel", TP2),
    (
        [P + "tp_overlap", "true", *TP2, "--data.validation", "{held: x}"],
        *(2, "tp_overlap", "data.validation", [P + "tp_overlap", "false"]),
    ),
    (
        [P + "tp_overlap", "true", *TP2, "--curriculum.stages.1.sequence_length", "512"],
        *(2, "tp_overlap", "rows of one length", [P + "tp_overlap", "false"]),
    ),
    ([P + "cuda_graphs", "mlp", *FULL], 1, "cuda_graphs", "not computed again", ["--parallel.recompute", "none"]),
    (
        [P + "cuda_graphs", "mlp", *SELECTIVE, P + "recompute_modules", "[mlp]"],
        *(1, "cuda_graphs", "not computed again", [P + "recompute_modules", "[core_attn]"]),
    ),
    (
        [P + "cuda_graphs", "mlp", P + "cpu_offload_layers", "1"],
        *(1, "cuda_graphs", "do not leave the GPU", [P + "cpu_offload_layers", "0"]),
    ),
    (
        [P + "cuda_graphs", "mlp", "--model.language.parallel_residual", "true"],
        *(1, "cuda_graphs", "its blocks as one", [P + "cuda_graphs", "none"]),
    ),
    (
        [P + "cuda_graphs", "mlp", "--model.language.dropout", "0.1"],
        *(1, "cuda_graphs", "dropout inside of a graph", ["--model.language.dropout", "0"]),
    ),
    (
        [P + "cuda_graphs", "mlp", "--parallel.precision", "fp32"],
        *(1, "cuda_graphs", "in bf16", ["--parallel.precision", "bf16"]),
    ),
    (
        [P + "cuda_graphs", "mlp", "--parallel.device", "cpu"],
        *(1, "cuda_graphs", "device is cpu", [P + "cuda_graphs", "none"]),
    ),
    ([P + "rope_fusion", "true", "--parallel.layer_spec", "host"], 1, "rope_fusion", "is host", [P + "rope_fusion", "null"]),
    (
        [P + "cross_entropy_fusion", "transformer_engine", "--parallel.device", "cpu"],
        *(1, "cross_entropy_fusion", "set it to native", [P + "cross_entropy_fusion", "native"]),
    ),
    (
        [P + "attention_backend", "flash", "--parallel.device", "cpu"],
        *(1, "attention_backend", "device is cpu", [P + "attention_backend", "auto"]),
    ),
    (
        [P + "gradient_accumulation_fusion", "true", "--parallel.device", "cpu"],
        *(1, "gradient_accumulation_fusion", "needs a GPU", [P + "gradient_accumulation_fusion", "null"]),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "ranks", "field", "reason", "remedy"), REFUSED)
def test_refused_and_what_the_message_says_instead(
    overrides: list[str], ranks: int, field: str, reason: str, remedy: list[str]
) -> None:
    lines = [line for line in problems(tiny(*overrides), ranks) if line.startswith(f"performance.{field}")]
    assert lines
    assert any(reason in line for line in lines), lines
    assert [line for line in problems(tiny(*overrides, *remedy), ranks) if "performance" in line] == []


def test_units_of_layers_divide_every_chunk() -> None:
    uneven = [
        *("--parallel.pipeline_model_parallel_size", "2", "--parallel.num_layers_in_last_pipeline_stage", "2"),
        *("--model.language.num_layers", "6", *FULL),
    ]
    assert problems(tiny(*uneven, P + "recompute_layers", "2"), 2) == []
    stages = [*uneven[:-2], "--model.language.num_layers", "8", *FULL]  # of 6 and 2 layers
    assert problems(tiny(*stages, P + "recompute_layers", "2"), 2) == []
    of_three = [*uneven[:3], "3", "--model.language.num_layers", "9", *FULL]  # of 6 and 3
    (line,) = problems(tiny(*of_three, P + "recompute_layers", "2"), 2)
    nearest = re.search(r"nearest that does: (\d)", line)
    assert nearest is not None
    assert problems(tiny(*of_three, P + "recompute_layers", nearest[1]), 2) == []
    assert problems(tiny(*of_three, P + "recompute_layers", "2", P + "recompute_method", "block"), 2) == []
