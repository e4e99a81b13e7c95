"""Queries and keys over all heads together: values and gradients are those of the plain norm, in any number of parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_vlm.config.model import ModelConfig
from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.models.full_width_norm import FullWidthNorm
from megatron_vlm.models.transformer_configs import language_config
from megatron_vlm.parallel import topology
from tests.distributed.ranks import run_ranks

HEADS, SIZE = 4, 6


def _values() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Heads `[5, 1, HEADS, SIZE]` far from zero mean, a gain, and a gradient of the output."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 1, HEADS, SIZE, generator=generator) * 2 + 1.5
    return x, torch.randn(HEADS * SIZE, generator=generator), torch.randn(x.shape, generator=generator)


def _normed(centred: bool, world: int) -> list[Any]:
    parallel = ParallelConfig(tensor_model_parallel_size=world)
    top = topology.initialize(parallel, seed=1)
    norm = FullWidthNorm(language_config(ModelConfig(), parallel, "cpu"), SIZE, 1e-5, HEADS, centred)
    x, gain, gradient = (t.chunk(world, dim=2 if t.dim() == 4 else 0)[top.tensor_rank] for t in _values())
    norm.weight.data.copy_(gain)
    x = x.clone().requires_grad_()
    out = norm(x)
    out.backward(gradient)
    assert x.grad is not None
    assert norm.weight.grad is not None
    return [out.tolist(), x.grad.tolist(), norm.weight.grad.tolist()]


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("centred", [False, True])
def test_it_is_the_plain_norm_over_the_full_width(centred: bool, world: int) -> None:
    x, gain, gradient = _values()
    x.requires_grad_()
    gain.requires_grad_()
    norm = F.layer_norm if centred else F.rms_norm
    out = norm(x.flatten(-2), (HEADS * SIZE,), gain, eps=1e-5).view_as(x)
    out.backward(gradient)
    parts = run_ranks(world, _normed, centred, world)
    for number, (expected, axis) in enumerate(((out.detach(), 2), (x.grad, 2), (gain.grad, 0))):
        found = torch.cat([torch.tensor(part[number]) for part in parts], dim=axis)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
