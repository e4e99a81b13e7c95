"""The table at a run's start says what megatron-core was built with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_vlm.config.precision import PrecisionConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.models.fp8 import fp8_options
from megatron_vlm.training.choices import run_choices
from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.loop import Run
from megatron_vlm.training.surroundings import as_table
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration

pytestmark = pytest.mark.distributed


def _tables(config: RunConfig) -> list[dict[str, str]]:
    """Of a run on the host, and of the same after megatron-core's configuration was made a GPU's."""
    run = Run(config)
    run._start()
    lines = run_choices(run.engine)
    assert as_table(lines).count("\n") == len(lines) - 1
    core = unwrap(run.engine.chunks[0]).config
    for name, value in fp8_options(PrecisionConfig(fp8="current", last_layers_in_bf16=1)).items():
        setattr(core, name, value)
    core.cuda_graph_impl = "transformer_engine"
    core.params_dtype, core.apply_rope_fusion, core.cross_entropy_loss_fusion = torch.bfloat16, True, True
    return [{line.part: line.chosen for line in found} for found in (lines, run_choices(run.engine))]


def test_what_was_chosen(data: Path) -> None:
    fields = {"performance.recompute_modules": "[core_attn, mlp]", "performance.recompute_vision": True}
    ((here, there),) = run_ranks(1, _tables, configuration(data, {"recompute": "selective"}, **fields))
    assert here == {
        "layers": "host, PyTorch's attention",
        "precision": "fp32",
        "encoder": "fp32",
        "fused kernels": "none",
        "recomputed": "core_attn and mlp, encoder layers",
        "overlapped": "nothing",
        "captured": "nothing",
        "Adam": "megatron_vlm HostFusedAdam, its state over data-parallel ranks",
    }
    assert there["precision"] == (
        "matrix products in FP8 hybrid, current scaling; the rest and what is scored in bf16; "
        "first 0 and last 1 layers in bf16"
    )
    assert there["encoder"] == "fp32"
    assert there["captured"] == "feed-forward blocks of language layers (CUDA graphs)"
    assert there["fused kernels"] == "rotary positions (Transformer Engine), cross-entropy (megatron-core)"
