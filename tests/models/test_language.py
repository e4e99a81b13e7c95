"""The z-loss over a vocabulary in parts, and the size of the vocabulary."""

from __future__ import annotations

import pytest
import torch

from megatron_vlm.config.parallel import ParallelConfig
from megatron_vlm.models.language import packed_row, padded_vocab_size, vocab_parallel_logsumexp
from megatron_vlm.parallel import topology
from tests.distributed.ranks import run_ranks


def _logits() -> torch.Tensor:
    """`[s, b, v]`, one row far above the range of exp."""
    logits = torch.randn(7, 2, 24, generator=torch.Generator().manual_seed(3)) * 4
    logits[2] += 300.0
    return logits


def _z_loss() -> tuple[list, list]:
    """This rank's z-loss, and its gradient of its part of the logits."""
    top = topology.initialize(ParallelConfig(tensor_model_parallel_size=2), seed=1)
    mine = _logits().chunk(2, dim=-1)[top.tensor_rank].clone().requires_grad_()
    z = 1e-3 * vocab_parallel_logsumexp(mine).square()
    z.sum().backward()
    assert mine.grad is not None
    return z.tolist(), mine.grad.tolist()


@pytest.mark.distributed
def test_the_z_loss_of_a_vocabulary_in_parts_is_the_plain_formula() -> None:
    logits = _logits().requires_grad_()
    plain = 1e-3 * logits.logsumexp(dim=-1).square()
    plain.sum().backward()
    ranks = run_ranks(2, _z_loss)
    for z, _ in ranks:
        torch.testing.assert_close(torch.tensor(z), plain.detach(), rtol=2e-6, atol=0)
    gradient = torch.cat([torch.tensor(part) for _, part in ranks], dim=-1)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("size", "multiple", "padded"), [(300, 128, 384), (384, 128, 384), (1, 1, 1), (385, 128, 512)])
def test_the_vocabulary_is_padded_up(size: int, multiple: int, padded: int) -> None:
    assert padded_vocab_size(size, multiple) == padded


def test_a_packed_row_holds_its_borders_as_kernels_want_them() -> None:
    row = packed_row(torch.tensor([0, 3, 9]), 6)
    assert row.qkv_format == "thd"
    assert row.cu_seqlens_q.dtype == torch.int32
    assert row.cu_seqlens_q is row.cu_seqlens_kv
    assert (row.max_seqlen_q, row.max_seqlen_kv) == (6, 6)
