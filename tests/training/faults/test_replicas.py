"""Sums over raw bits: any flipped bit is seen, and the replica that most others contradict is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.training.faults.replicas import bit_sum, differing, replicas_message


@given(st.integers(0, 99), st.integers(0, 31), st.integers(0, 2**32 - 1))
def test_one_flipped_bit_changes_the_sum(place: int, bit: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2**32, 100, dtype=np.uint32)
    before = int(bit_sum(torch.from_numpy(values.view(np.float32).copy())))
    assert before == int(values.view(np.int32).astype(np.int64).sum())
    values[place] ^= np.uint32(1 << bit)
    assert int(bit_sum(torch.from_numpy(values.view(np.float32)))) != before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float32])
def test_minus_zero_and_a_transposed_tensor(dtype: torch.dtype) -> None:
    ones = torch.arange(6, dtype=dtype).view(2, 3).t()
    assert int(bit_sum(ones)) == int(bit_sum(ones.contiguous()))
    assert int(bit_sum(torch.tensor(-0.0, dtype=dtype))) != int(bit_sum(torch.tensor(0.0, dtype=dtype)))


def test_the_odd_one_out_is_named() -> None:
    assert differing([[1, 5], [1, 5], [1, 5]], [0, 4, 8], ["a", "b"]) == []
    assert differing([[1, 5], [1, 6], [1, 5]], [0, 4, 8], ["a", "b"]) == ["b on rank 4 differs from the other 2 replicas"]
    assert differing([[1, 5], [2, 5]], [0, 4], ["a", "b"]) == ["a differs between ranks 0, 4"]


def test_the_message_is_of_bounded_length() -> None:
    assert "; and 92 more. " in replicas_message(3, [f"p{n}" for n in range(100)])
