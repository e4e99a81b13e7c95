"""The host's Adam makes torch's updates and keeps FusedAdam's state."""

from __future__ import annotations

import pytest
import torch

from megatron_vlm.parallel.host_adam import HostFusedAdam

OPTIONS = {"lr": 0.05, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def _parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(4, 3), (5,)]]


@pytest.mark.parametrize(("decoupled", "theirs"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)])
def test_updates_are_those_of_torch(decoupled: bool, theirs: type[torch.optim.Optimizer]) -> None:
    ours, reference = _parameters(), _parameters()
    optimizers = [HostFusedAdam(ours, adam_w_mode=decoupled, **OPTIONS), theirs(reference, **OPTIONS)]  # type: ignore[arg-type]
    for step in range(5):
        for group in (ours, reference):
            for parameter in group:
                parameter.grad = torch.sin(parameter.detach() * (step + 1))
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_the_step_is_the_groups_and_a_group_without_parameters_keeps_none() -> None:
    first, second = _parameters()
    optimizer = HostFusedAdam([{"params": [first]}, {"params": [second]}], **OPTIONS)  # type: ignore[arg-type]
    first.grad = torch.ones_like(first)
    put_aside = optimizer.param_groups[1]["params"]
    optimizer.param_groups[1]["params"] = []
    optimizer.step()
    optimizer.param_groups[1]["params"] = put_aside
    assert optimizer.param_groups[0]["step"] == 1
    assert "step" not in optimizer.param_groups[1]
    assert set(optimizer.state[first]) == {"exp_avg", "exp_avg_sq"}
    assert not optimizer.state[second]
