"""megatron-core's fused cross-entropy gives the losses and gradients of the plain one, with the z-loss beside it.

It rounds the gradients of logits to bf16, of 8 bits, also in an fp32 run: gradient norms agree to 2^-9, and losses of the
first step, before an update, to 2e-6 as in fp32.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vlm.config.run import RunConfig
from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import TP2, configuration, one_step

pytestmark = [pytest.mark.distributed, pytest.mark.slow]  # torch compiles it


def _steps(configs: list[RunConfig], count: int) -> list[tuple[bool, list[dict[str, float]]]]:
    found = []
    for config in configs:
        run = Run(config)
        run._start()
        fused = unwrap(run.engine.chunks[0]).config.cross_entropy_loss_fusion
        found.append((fused, [one_step(run) for _ in range(count)]))
    return found


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_losses_are_the_same(z_loss: float, data: Path) -> None:
    fields = {"optimizer.z_loss": z_loss, "curriculum.stages": "[{sources: {text: 0.5, captions: 0.5}}]"}
    configs = [
        configuration(data, {**TP2, "sequence_parallel": True}, **fields, performance__cross_entropy_fusion=kind)
        for kind in ("auto", "native")
    ]
    for (plain_is, plain), (fused_is, fused) in run_ranks(2, _steps, configs, 2):
        assert (plain_is, fused_is) == (False, True)
        for step, (ours, theirs) in enumerate(zip(fused, plain, strict=True)):
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                tolerance = value * 2**-9 if key == "grad_norm" else 1e-4 if step else 2e-6
                assert abs(ours[key] - value) <= tolerance, (key, ours[key], value)
