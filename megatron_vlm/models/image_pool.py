"""Fewer rows a picture: squares of neighbouring rows averaged, after the projector."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def pool_for(side: int, image_tokens: int) -> int:
    """The n for which the `side` x `side` rows of a picture, averaged n x n, are `image_tokens`.

    Raises:
        ValueError: there is none.
    """
    kept = math.isqrt(max(image_tokens, 0))
    if kept == 0 or kept * kept != image_tokens or side % kept:
        fitting = [(side // n) ** 2 for n in range(1, side + 1) if side % n == 0]
        raise ValueError(
            f"a picture has {side} x {side} rows after the projector, and {image_tokens} placeholders: averaging squares "
            f"of rows gives {', '.join(map(str, fitting))}"
        )
    return side // kept


def pool_shaped(rows: Tensor, sides: Sequence[tuple[int, int]], pool: int) -> Tensor:
    """`pool_rows` for pictures of (rows, columns) `sides`, one after another: `[rows, h]` -> `[rows / pool^2, h]`."""
    if pool == 1:
        return rows
    at, squares = 0, []
    for down, across in sides:
        numbers = torch.arange(at, at + down * across).view(down // pool, pool, across // pool, pool)
        squares.append(numbers.transpose(1, 2).reshape(-1))
        at += down * across
    # each row is in one square: its gradient is added to nothing
    chosen = rows.index_select(0, torch.cat(squares).to(rows.device))
    return chosen.view(-1, pool * pool, rows.size(-1)).mean(dim=1)


def pool_rows(rows: Tensor, side: int, pool: int) -> Tensor:
    """`[pictures * side^2, h]`, each picture's rows in reading order -> `[pictures * (side / pool)^2, h]`, the means of its
    pool x pool squares in reading order."""
    if pool == 1:
        return rows
    small, hidden = side // pool, rows.size(-1)
    squares = rows.view(-1, small, pool, small, pool, hidden)
    return squares.mean(dim=(2, 4)).view(-1, hidden)
