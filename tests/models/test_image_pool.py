"""Averaged rows are avg_pool2d of the picture that they are, and only squares of rows are averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_vlm.data.picture_input import PictureInput
from megatron_vlm.models.image_pool import pool_for, pool_rows, pool_shaped
from megatron_vlm.parallel import topology
from megatron_vlm.training.engine import build_chunks, unwrap
from tests.distributed.drawn_batches import TOKENS
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_rows_of_any_shape_are_those_of_each_picture_alone(pool: int) -> None:
    sides = [(pool, 4 * pool), (3 * pool, 2 * pool), (pool, pool)]
    counts = [down * across for down, across in sides]
    rows = torch.randn(sum(counts), 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    made = pool_shaped(rows, sides, pool)
    expected = [
        F.avg_pool2d(part.view(*side, 5).permute(2, 0, 1), pool).permute(1, 2, 0).reshape(-1, 5)
        for part, side in zip(rows.split(counts), sides, strict=True)
    ]
    torch.testing.assert_close(made, torch.cat(expected), rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(made.sum(), rows)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / pool**2))


@pytest.mark.parametrize(("side", "pool"), [(4, 1), (4, 2), (4, 4), (9, 3), (6, 2)])
def test_rows_are_means_of_squares(side: int, pool: int) -> None:
    pictures, hidden = 3, 5
    rows = torch.randn(pictures * side * side, hidden, generator=torch.Generator().manual_seed(1), requires_grad=True)
    made = pool_rows(rows, side, pool)
    planes = rows.view(pictures, side, side, hidden).permute(0, 3, 1, 2)
    expected = F.avg_pool2d(planes, pool).permute(0, 2, 3, 1).reshape(-1, hidden)
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(made.sum(), rows)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / pool**2))


@pytest.mark.parametrize(("side", "tokens", "pool"), [(8, 64, 1), (8, 16, 2), (8, 4, 4), (8, 1, 8), (27, 81, 3)])
def test_the_pool_that_gives_so_many_rows(side: int, tokens: int, pool: int) -> None:
    assert pool_for(side, tokens) == pool


@pytest.mark.parametrize("tokens", [0, 2, 9, 49, 100, 256, -4])
def test_no_pool_gives_any_other_number(tokens: int) -> None:
    with pytest.raises(ValueError, match=rf"8 x 8 rows after the projector, and {tokens} .* gives 64, 16, 4, 1$"):
        pool_for(8, tokens)


@torch.no_grad()
def _neighbours(config: Any) -> tuple[list[int], float]:
    """Which of a picture's 2 x 2 means move when its lower left quarter is another; how far they are from avg_pool2d's."""
    top = topology.initialize(config.parallel, 1)
    model = unwrap(build_chunks(config, TOKENS, top)[0])
    assert model.vision is not None
    for layer in model.vision.decoder.layers:  # patches see nothing but themselves
        layer.self_attention.linear_proj.weight.zero_()
    picture = torch.randint(0, 256, (1, 64, 64, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    changed = picture.clone()
    changed[:, 32:, :32] ^= 0x80
    before, after = (model.encode_pictures(PictureInput(1, 4, pixels)) for pixels in (picture, changed))
    side = 16 // config.model.projector.pixel_shuffle
    planes = model.encode_pictures(PictureInput(1, side**2, picture)).view(1, side, side, -1).permute(0, 3, 1, 2)
    expected = F.avg_pool2d(planes, side // 2).flatten(2)[0].T
    return (before != after).any(dim=1).nonzero().flatten().tolist(), float((before - expected).abs().max())


@pytest.mark.parametrize("shuffle", [1, 2, 4])
def test_what_is_averaged_is_beside_each_other_in_the_picture(shuffle: int) -> None:
    """Patches come in blocks of the shuffle's size; after the projector their rows are in reading order."""
    config = configuration(Path("nowhere"), **{"model.vision.patch_size": 4, "model.projector.pixel_shuffle": shuffle})
    moved, distance = run_ranks(1, _neighbours, config)[0]
    assert moved == [2]
    assert distance < 1e-6
