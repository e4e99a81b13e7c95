"""The CUDA operators on a GPU: the library that users get, against the references, to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.ops.kernels import Kernels, cuda_kernels
from tests.ops.kernel_cases import (
    TYPES,
    Fusion,
    Patching,
    check_fusion,
    check_patchify,
    run_backward_rows,
    run_backward_weight,
    run_forward,
    run_patchify,
    same,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda:0"


def kernels() -> Kernels:
    found = cuda_kernels()
    assert found is not None, "not built: run make where nvcc is"
    return found


@settings(max_examples=200)
@given(
    st.sampled_from(TYPES),
    st.one_of(st.sampled_from([1, 7, 8, 64, 1024, 4095, 4096, 4099]), st.integers(1, 4099)),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0, 0, 1, 4]),
    st.booleans(),
    st.integers(0, 1 << 30),
)
def test_fusion_and_its_gradients_are_those_of_the_references(dtype, hidden, shards, images, shift, rows_here, seed):
    case = Fusion(2, 40, hidden, 3, 33, 5 * shards, shards, seed % shards, images, 2, shift, dtype, rows_here, seed, DEVICE)
    check_fusion(kernels(), case)


@pytest.mark.parametrize("dtype", TYPES)
def test_fusion_at_the_size_of_training(dtype):
    check_fusion(kernels(), Fusion(2, 2048, 2048, 0, 2048, 32000, 4, 1, dtype=dtype, device=DEVICE))


def test_one_word_in_every_position_is_summed_in_order():
    """The longest chain of additions that a batch can hold: padding."""
    check_fusion(kernels(), Fusion(4, 1024, 512, 0, 1024, 1, 1, 0, images=0.0, dtype=torch.bfloat16, device=DEVICE))


def test_the_gradient_of_the_weight_has_the_same_bits_every_time():
    case = Fusion(4, 1024, 1024, 0, 1024, 200, 1, 0, dtype=torch.bfloat16, device=DEVICE)
    tokens, row_index, _ = case.indices()
    first = run_backward_weight(kernels(), case, tokens, row_index)
    assert all(same(run_backward_weight(kernels(), case, tokens, row_index), first) for _ in range(20))


def test_faults_are_named_and_nothing_else_is_touched():
    case = Fusion(1, 4, 8, 0, 4, 6, 2, 1, device=DEVICE)
    words, no_rows = torch.tensor([[0, 5, 3, 1]]), torch.full((1, 4), -1, dtype=torch.int32)
    for token in (6, -1, 1 << 40, -(1 << 63)):
        out, faults = run_forward(kernels(), case, torch.tensor([[0, token, 3, 1]]), no_rows, 2)
        assert faults == 1
        assert not out[1].any()
    for index in (2, -2, (1 << 31) - 1, -(1 << 31)):
        row_index = torch.tensor([[0, index, -1, 1]], dtype=torch.int32)
        assert run_forward(kernels(), case, words, row_index, 2)[1] == 2
        assert run_backward_rows(kernels(), case, row_index, 2)[1] == 2
    assert run_backward_rows(kernels(), case, torch.tensor([[1, 0, 1, -1]], dtype=torch.int32), 2)[1] == 4
    patching = Patching(patch_size=2, device=DEVICE)
    for table, patches in (
        ([[0, 4, 4, 0], [48, 4, 4, 4]], 8),
        ([[0, 4, 4, 0], [48, 2, 2, 3]], 4),
        ([[0, 2, (1 << 63) - 1, 0]], 4),
        ([[-1, 4, 4, 0]], 4),
    ):
        assert run_patchify(kernels(), patching, torch.tensor(table), patches, patching.pixels(60))[2] == 8
    torch.cuda.synchronize()  # an access outside of memory would show here


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("patch_size", [14, 16, 9, 1])
@pytest.mark.parametrize("dtype", TYPES)
def test_patches_are_those_of_the_reference(dtype, patch_size, group, shift):
    side = patch_size * group
    sizes = ((side, 2 * side), (3 * side + patch_size // 2, side), (0, side), (2 * side, 2 * side)) * 5
    check_patchify(kernels(), Patching(sizes, patch_size, group, gap=1, shift=shift, dtype=dtype, device=DEVICE))


def test_more_patches_than_blocks():
    """Blocks then write several times sixteen patches, one after the other."""
    check_patchify(kernels(), Patching(((896, 896),) * 20, 2, 2, dtype=torch.bfloat16, device=DEVICE))


def test_work_is_ordered_on_the_given_stream():
    """On a side stream behind a long wait: what the kernel reads is written by the work before it."""
    case = Fusion(2, 64, 256, 0, 64, 50, 1, 0, dtype=torch.bfloat16, device=DEVICE)
    expected = run_forward(kernels(), case, *case.indices())[0]
    stream = torch.cuda.Stream(DEVICE)
    stream.wait_stream(torch.cuda.current_stream(DEVICE))
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        got = run_forward(kernels(), case, *case.indices())[0]
    assert same(got, expected)


def test_a_launch_on_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    case = replace(Fusion(dtype=torch.bfloat16), device="cuda:1")
    with torch.cuda.device(0):
        check_fusion(kernels(), case)


def test_a_refused_call_is_an_error_with_its_name():
    case = Fusion(device=DEVICE)
    tokens, row_index, row_count = case.indices()
    with pytest.raises(RuntimeError, match="mvlm_fuse_forward failed with cudaErrorInvalidValue: "):
        run_forward(kernels(), replace(case, first_position=5), tokens, row_index, row_count)
