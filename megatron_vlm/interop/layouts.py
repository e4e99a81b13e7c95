"""How the values of one of our tensors lie in the tensors of another project: joined on the way in, split on the way out.

Every layout only moves values, so that the way in and out again gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Shape = tuple[int, ...]


class Layout(Protocol):
    """One tensor of ours and those of theirs that hold the same values."""

    @property
    def ours(self) -> Shape: ...

    @property
    def theirs(self) -> tuple[Shape, ...]: ...

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Theirs, of the shapes `theirs` -> ours, of the shape `ours`."""
        ...

    def split(self, whole: Tensor) -> list[Tensor]:
        """Ours -> theirs. Raises ValueError where they cannot hold the values; says why."""
        ...


@dataclass(frozen=True)
class Same:
    """The same values in the same order; `other` is their shape where it differs (a convolution's kernel)."""

    shape: Shape
    other: Shape | None = None

    def __post_init__(self) -> None:
        assert math.prod(self.shape) == math.prod(self.theirs[0])

    @property
    def ours(self) -> Shape:
        return self.shape

    @property
    def theirs(self) -> tuple[Shape, ...]:
        return (self.other or self.shape,)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0].reshape(self.shape)

    def split(self, whole: Tensor) -> list[Tensor]:
        return [whole.reshape(self.theirs[0])]


@dataclass(frozen=True)
class Stacked:
    """Several of theirs one below the other, as a gated layer's gate and up matrices are in ours."""

    parts: tuple[Shape, ...]

    @property
    def ours(self) -> Shape:
        return (sum(shape[0] for shape in self.parts), *self.parts[0][1:])

    @property
    def theirs(self) -> tuple[Shape, ...]:
        return self.parts

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    def split(self, whole: Tensor) -> list[Tensor]:
        return list(whole.split([shape[0] for shape in self.parts]))


@dataclass(frozen=True)
class GroupedQKV:
    """Query, key and value matrices apart, or one below the other; ours keeps the rows of a group together.

    megatron-core's order: the queries of the first group of heads, its key, its value, then the second group. `width` is the
    input's, None for a bias.
    """

    heads: int
    groups: int
    head_dim: int
    width: int | None
    fused: bool = False  # theirs is one tensor: all queries, all keys, all values

    @property
    def _tail(self) -> Shape:
        return () if self.width is None else (self.width,)

    @property
    def _rows(self) -> list[int]:
        return [self.heads * self.head_dim, self.groups * self.head_dim, self.groups * self.head_dim]

    @property
    def ours(self) -> Shape:
        return (sum(self._rows), *self._tail)

    @property
    def theirs(self) -> tuple[Shape, ...]:
        return (self.ours,) if self.fused else tuple((rows, *self._tail) for rows in self._rows)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        if self.fused:
            parts = parts[0].split(self._rows)
        grouped = [part.reshape(self.groups, -1, *self._tail) for part in parts]
        return torch.cat(grouped, dim=1).reshape(self.ours)

    def split(self, whole: Tensor) -> list[Tensor]:
        shared = self.heads // self.groups * self.head_dim
        grouped = whole.reshape(self.groups, shared + 2 * self.head_dim, *self._tail)
        parts = [
            part.reshape(rows, *self._tail)
            for part, rows in zip(grouped.split([shared, self.head_dim, self.head_dim], dim=1), self._rows, strict=True)
        ]
        return [torch.cat(parts)] if self.fused else parts


@dataclass(frozen=True)
class Constant:
    """Theirs has no such tensor and acts as if it were all `value`: a norm without a gain."""

    shape: Shape
    value: float
    dtype: torch.dtype = torch.float32

    @property
    def ours(self) -> Shape:
        return self.shape

    @property
    def theirs(self) -> tuple[Shape, ...]:
        return ()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.full(self.shape, self.value, dtype=self.dtype)

    def split(self, whole: Tensor) -> list[Tensor]:
        if not bool((whole == self.value).all()):
            raise ValueError(f"the family has no such tensor and acts as if all of it were {self.value:g}, which is not so")
        return []


@dataclass(frozen=True)
class Repeated:
    """Theirs holds a tensor for each of `count` heads, ours one for all of them; on the way in they must be alike."""

    shape: Shape
    count: int

    @property
    def ours(self) -> Shape:
        return self.shape

    @property
    def theirs(self) -> tuple[Shape, ...]:
        return (self.shape,) * self.count

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        if not all(torch.equal(part, parts[0]) for part in parts[1:]):
            raise ValueError(f"the {self.count} heads have gains of their own, and this project has one for all")
        return parts[0]

    def split(self, whole: Tensor) -> list[Tensor]:
        return [whole.clone() for _ in range(self.count)]
