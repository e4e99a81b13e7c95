"""Positions of another grid are torch's bicubic interpolation, with its gradients; those of the own grid are the table."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_vlm.models.position_table import PositionTable, bicubic_matrix

OWN, HIDDEN = 6, 5


def table(has_class: bool = True, antialias: bool = False, dtype: torch.dtype = torch.float32) -> PositionTable:
    made = PositionTable(OWN, HIDDEN, has_class, antialias, dtype)
    with torch.no_grad():
        made.weight.normal_(generator=torch.Generator().manual_seed(3))
    return made


def plain(weight: Tensor, grid: int, antialias: bool) -> Tensor:
    """`[grid * grid, hidden]` of the patches' rows, by torch."""
    picture = weight.view(1, OWN, OWN, HIDDEN).permute(0, 3, 1, 2)
    made = F.interpolate(picture, (grid, grid), mode="bicubic", align_corners=False, antialias=antialias)
    return made[0].flatten(1).T


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [1, 3, 4, 5, 7, 12, 32])
def test_values_and_gradients_are_torchs(grid: int, antialias: bool) -> None:
    made = table(antialias=antialias)
    weight = made.weight.detach().clone().requires_grad_()
    first, patches = made(grid)
    expected = plain(weight[1:], grid, antialias)
    torch.testing.assert_close(patches, expected, rtol=0, atol=3e-6)
    assert first is not None
    assert torch.equal(first, weight[0])
    pull = torch.randn(grid * grid, HIDDEN, generator=torch.Generator().manual_seed(4))
    (patches * pull).sum().backward()
    (expected * pull).sum().backward()
    assert made.weight.grad is not None
    torch.testing.assert_close(made.weight.grad, weight.grad, rtol=0, atol=1e-5)


def test_smoothing_where_it_makes_fewer_is_another_thing() -> None:
    assert (table(antialias=True)(3)[1] - table(antialias=False)(3)[1]).abs().max() > 0.1


@pytest.mark.parametrize("has_class", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
def test_the_own_grid_is_the_table_to_the_bit(has_class: bool, antialias: bool) -> None:
    made = table(has_class, antialias)
    first, patches = made(OWN)
    assert torch.equal(patches, made.weight[int(has_class) :])
    assert (first is not None) == has_class


@pytest.mark.parametrize("grid", [OWN, 4, 8])
def test_places_choose_rows(grid: int) -> None:
    made = table()
    order = torch.randperm(grid * grid, generator=torch.Generator().manual_seed(5))
    places = torch.stack([order // grid, order % grid], dim=1).int()
    assert torch.equal(made(grid, places)[1], made(grid)[1][order])


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("old", "new"), [(27, 16), (16, 27), (3, 3)])
def test_the_weights_of_a_sample_sum_to_one(old: int, new: int, antialias: bool) -> None:
    matrix = bicubic_matrix(old, new, antialias)
    assert matrix.shape == (new, old)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(new), rtol=0, atol=1e-6)


def test_a_bf16_table_is_interpolated_in_fp32_and_rounded_once() -> None:
    made = table(dtype=torch.bfloat16)
    exact = plain(made.weight[1:].detach().float(), 9, False)
    patches = made(9)[1]
    assert patches.dtype == torch.bfloat16
    torch.testing.assert_close(patches.float(), exact, rtol=2**-8, atol=1e-6)
