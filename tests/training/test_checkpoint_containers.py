"""Files of tensors: what torch.load reads, and, but for checksums, what torch.save writes."""

from __future__ import annotations

import io

import pytest
import torch

from megatron_vlm.training.checkpoint.containers import Containers

KINDS = [
    ((3, 5), torch.float32),
    ((7,), torch.bfloat16),
    ((), torch.float32),
    ((0, 4), torch.float32),
    ((2, 3), torch.int64),
]


@pytest.mark.parametrize(("shape", "dtype"), KINDS)
def test_they_are_read_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    containers = Containers()
    for seed in range(3):
        tensor = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 100).to(dtype)
        stream = io.BytesIO()
        containers.write(tensor, stream)
        stream.seek(0)
        found = torch.load(stream, weights_only=True)
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(found, tensor)


def test_a_view_is_written_without_the_rest_of_its_storage() -> None:
    whole = torch.arange(10_000, dtype=torch.float32)
    stream = io.BytesIO()
    Containers().write(whole[100:104], stream)
    assert stream.getbuffer().nbytes < 3000
    stream.seek(0)
    assert torch.load(stream, weights_only=True).tolist() == [100, 101, 102, 103]


def test_the_bytes_are_torch_saves() -> None:
    """Of zeros, for which the frame was made."""
    tensor, ours, theirs = torch.zeros(4, 6), io.BytesIO(), io.BytesIO()
    Containers().write(tensor, ours)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensor, theirs)
    finally:
        torch.serialization.set_crc32_options(before)
    assert ours.getvalue() == theirs.getvalue()
