"""The presets in the planner's fastest layout on all GPUs of this machine: prints tokens/s, MFU and memory beside the plan.

Nothing is asserted of speed, which is the machine's; what is: that steps are made, that their numbers are finite, and that a
plan that fits does. `pytest -m gpu tests/gpu/test_throughput.py` shows the lines.
"""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from megatron_vlm.config.loading import preset_names
from megatron_vlm.planning.estimate import padded_vocab
from megatron_vlm.planning.flops import step_flops
from megatron_vlm.training.device_check.speed import data_sheet
from tests.gpu.drawn_plan import STEPS, batch_of, plan_for
from tests.gpu.drawn_rank import TOKENS, launch
from tests.gpu.needed import ON_A_GPU

pytestmark = ON_A_GPU

#: steps that are not counted: kernels are loaded and chosen, memory is taken
UNCOUNTED = 3


@pytest.mark.parametrize("preset", preset_names())
def test_throughput(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, gpus = torch.cuda.get_device_name(0), torch.cuda.device_count()
    hardware = data_sheet(name)
    if hardware is None:
        pytest.skip(f"{name} is not among the planner's GPUs (planning.hardware)")
    planned = plan_for(preset, gpus, hardware)
    if planned is None:
        pytest.skip(f"{preset} does not fit on {gpus} x {name}, says the planner")
    plan = planned.plan
    found = launch(gpus, preset, STEPS, *planned.overrides, timeout=3000)
    assert all(math.isfinite(value) for value in (*found["losses"], *found["grad_norms"]))
    seconds = statistics.median(found["seconds"][UNCOUNTED:])
    batch = batch_of(plan.config)
    operations = step_flops(plan.config.model, padded_vocab(plan.config, TOKENS.vocab_size), batch)
    reached = operations / seconds / gpus / hardware.peak_of("bf16")
    with capsys.disabled():
        print(
            f"\n{preset} on {gpus} x {name}: {plan.layout}; {batch.positions / seconds:,.0f} tokens/s (planned "
            f"{plan.tokens_per_second:,.0f}), MFU {reached:.1%} (planned {plan.model_flops_utilisation:.1%}), "
            f"{found['memory'] / 1e9:.1f} GB on rank 0 (planned {plan.memory_by_rank[0].total / 1e9:.1f}), "
            f"{seconds * 1e3:.0f} ms a step, layers {found['layer_spec']}"
        )
    assert 0 < found["memory"] <= torch.cuda.get_device_properties(0).total_memory
