"""The project's operators on a device against their references on the CPU, to the bit."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_vlm.ops.faults import raise_faults
from megatron_vlm.ops.fuse import fuse_embeddings
from megatron_vlm.ops.fuse_reference import fuse_embeddings_backward_reference, fuse_embeddings_reference
from megatron_vlm.ops.kernels import cuda_kernels
from megatron_vlm.ops.native import native_operators
from megatron_vlm.ops.patchify import patchify, picture_table
from megatron_vlm.ops.patchify_reference import patchify_reference
from megatron_vlm.training.device_check.outcome import LeftOutError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def check_fusion(device: torch.device, dtype: torch.dtype) -> str:
    """Words and picture rows fused, and both gradients. Raises AssertionError where bits differ."""
    _require(device)
    generator = torch.Generator().manual_seed(1)
    batch, sequence, hidden, words = 2, 512, 1024, 3000
    tokens = torch.randint(0, words, (batch, sequence), generator=generator)
    row_index = torch.full((batch, sequence), -1, dtype=torch.int32)
    pictured = torch.rand((batch, sequence), generator=generator) < 0.3
    count = int(pictured.sum())
    row_index[pictured] = torch.randperm(count, generator=generator).int()
    weight = torch.randn(words, hidden, generator=generator).to(dtype)
    rows = torch.randn(count, hidden, generator=generator).to(dtype)
    gradient = torch.randn(sequence, batch, hidden, generator=generator).to(dtype)

    here_weight, here_rows = (x.to(device).requires_grad_() for x in (weight, rows))
    made = fuse_embeddings(tokens.to(device), here_weight, here_rows, row_index.to(device))
    made.backward(gradient.to(device))
    raise_faults(device)
    assert here_weight.grad is not None
    assert here_rows.grad is not None
    expected = fuse_embeddings_reference(tokens, weight, rows, row_index, 0, words, 0, sequence, True)
    of_weight, of_rows = fuse_embeddings_backward_reference(gradient, tokens, row_index, words, count, 0, 0)
    _same("the fused input", made.detach(), expected)
    _same("the gradient of the embedding", here_weight.grad, of_weight)
    _same("the gradient of the rows", here_rows.grad, of_rows)
    return f"{batch} x {sequence} positions of {hidden}, forward and both gradients, to the bit"


def check_patches(device: torch.device, dtype: torch.dtype) -> str:
    """Pictures of several sizes cut into normalised patches. Raises AssertionError where bits differ."""
    _require(device)
    side, sizes = 14, [(56, 84), (384, 384), (28, 28), (98, 42)]
    table = picture_table(sizes, side)
    patches = sum((height // side) * (width // side) for height, width in sizes)
    pixels = torch.randint(
        0, 256, (sum(3 * h * w for h, w in sizes),), generator=torch.Generator().manual_seed(2), dtype=torch.uint8
    )
    made, places = patchify(pixels.to(device), table.to(device), patches, patch_size=side, mean=MEAN, std=STD, dtype=dtype)
    raise_faults(device)
    expected, expected_places = patchify_reference(pixels, table, patches, side, 1, MEAN, STD, dtype)
    _same("the patches", made, expected)
    _same("their places", places, expected_places)
    return f"{patches} patches of {len(sizes)} pictures, to the bit"


def _require(device: torch.device) -> None:
    """What stands in for operators that are not built is the reference itself: there would be nothing to compare."""
    if device.type == "cuda" and cuda_kernels() is None:
        raise LeftOutError("the CUDA kernels are not built (see above); PyTorch's operators serve in their place")
    if device.type == "cpu" and native_operators() is None:
        raise LeftOutError("the native operators are not built (see above); numpy and PyTorch serve in their place")


def _same(what: str, made: Tensor, expected: Tensor) -> None:
    made = made.cpu()
    if torch.equal(made, expected):
        return
    apart = (made.double() - expected.double()).abs()
    raise AssertionError(f"{what}: {int((apart > 0).sum())} of {apart.numel()} values differ, by up to {apart.max():.3g}")
