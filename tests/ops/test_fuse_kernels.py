"""What is sorted and allocated around the CUDA kernels, with the kernels run on the CPU: the reference, to the bit."""

from __future__ import annotations

from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from megatron_vlm.ops import faults, fuse, fuse_kernels, patchify
from megatron_vlm.ops.fuse_reference import fuse_embeddings_backward_reference, fuse_embeddings_reference
from tests.ops.emulation import emulated_kernels, needs_compiler
from tests.ops.test_fuse import batch, weights

pytestmark = needs_compiler


@given(
    seed=st.integers(0, 999),
    b=st.integers(1, 3),
    s=st.integers(1, 30),
    hidden=st.sampled_from([1, 8, 33]),
    vocab=st.integers(1, 20),
    rows=st.integers(0, 20),
    start=st.integers(0, 6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    asked=st.sampled_from([(True, True), (True, False), (False, True)]),
)
def test_the_whole_operator_on_the_kernels(seed, b, s, hidden, vocab, rows, start, dtype, asked) -> None:
    tokens, row_index = batch(seed, b, s, vocab + start + 3, rows, rows)
    weight, image_rows = weights(seed, vocab, rows, hidden, dtype)
    weight, image_rows = weight.detach(), image_rows.detach()
    first = seed % s
    count = 1 + seed % (s - first)
    fault = torch.zeros(1, dtype=torch.int32)
    where = (start, vocab + start + 3, first, count, True)
    out = fuse_kernels.forward(emulated_kernels(), fault, 0, tokens, weight, image_rows, row_index, *where)
    assert torch.equal(out, fuse_embeddings_reference(tokens, weight, image_rows, row_index, *where))
    gradient = torch.randn(count, b, hidden, generator=torch.Generator().manual_seed(seed)).to(dtype)
    found = fuse_kernels.backward(
        emulated_kernels(), fault, 0, gradient, tokens, row_index, vocab, rows, start, first, *asked
    )
    expected = fuse_embeddings_backward_reference(gradient, tokens, row_index, vocab, rows, start, first)
    for one, other, wanted in zip(found, expected, asked, strict=True):
        assert torch.equal(one, other if wanted else other[:0])
    assert int(fault) == 0


@pytest.fixture
def on_kernels(monkeypatch) -> torch.Tensor:
    """What is registered for CUDA finds the kernels' CPU build, and a stream; returns its fault flag."""
    monkeypatch.setattr(faults, "_FLAGS", {})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    for module in (fuse, patchify):
        monkeypatch.setattr(module, "cuda_kernels", emulated_kernels)
    return faults.fault_flag(torch.device("cpu"))


@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "without their library"])
def test_what_is_registered_for_cuda_gives_what_the_cpu_gives(on_kernels, monkeypatch, kernels) -> None:
    if not kernels:
        for module in (fuse, patchify):
            monkeypatch.setattr(module, "cuda_kernels", lambda: None)
    tokens, row_index = batch(9, 2, 11, 13, 8, 7)
    weight, rows = (t.detach() for t in weights(9, 10, 8, 6, torch.bfloat16))
    where = (2, 13, 3, 7, True)
    out = fuse._forward_cuda(tokens, weight, rows, row_index, *where)
    assert torch.equal(out, fuse._forward_cpu(tokens, weight, rows, row_index, *where))
    for asked in ((True, True), (True, False), (False, True)):
        arguments = (torch.randn_like(out), tokens, row_index, 10, 8, 2, 13, 3, *asked)
        for one, other in zip(fuse._backward_cuda(*arguments), fuse._backward_cpu(*arguments), strict=True):
            assert torch.equal(one, other)
    sizes = [(8, 12), (4, 4)]
    pixels = torch.randint(0, 256, (3 * (96 + 16),), dtype=torch.uint8)
    pictures = (pixels, patchify.picture_table(sizes, 2), 28, 2, 2, [0.5] * 3, [0.25] * 3, torch.float32)
    for one, other in zip(patchify._patchify_cuda(*pictures), patchify._patchify_cpu(*pictures), strict=True):
        assert torch.equal(one, other)
    assert int(on_kernels) == 0


def test_faults_are_raised_once_and_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(faults, "_FLAGS", {})
    device = torch.device("cpu")
    faults.raise_faults(device)  # no flag yet, nothing to wait for
    flag = faults.fault_flag(device)
    assert faults.fault_flag(device) is flag
    tokens, row_index = torch.tensor([[5, 0]]), torch.tensor([[-1, 3]], dtype=torch.int32)
    weight, rows = torch.ones(5, 2), torch.ones(3, 2)
    out = fuse_kernels.forward(emulated_kernels(), flag, 0, tokens, weight, rows, row_index, 0, 5, 0, 2, True)
    assert not out.any(), "positions at fault are left zero"
    with pytest.raises(IndexError, match="on cpu: a token id is outside the vocabulary; a row index is neither"):
        faults.raise_faults(device)
    faults.raise_faults(device)
