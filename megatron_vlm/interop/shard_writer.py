"""Tensors into a folder of safetensors with an index, one shard in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from megatron_vlm.data import atomic_file
from megatron_vlm.errors import DataError, UserError
from megatron_vlm.interop.layouts import Shape

INDEX = "model.safetensors.index.json"


def plan_shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in their order, in runs of at most `limit` bytes; a larger tensor has a shard of its own."""
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def write_shards(
    folder: Path, described: dict[str, tuple[Shape, torch.dtype]], tensors: Iterable[tuple[str, Tensor]], limit: int
) -> list[Path]:
    """Write `tensors`, which come in the order of `described`, into `folder`; model.safetensors where one shard holds all.

    Raises:
        UserError: a file cannot be written.
        DataError: a tensor comes out of order or is not of the shape and type that was described; a defect.
    """
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in described.items()}
    shards = plan_shards(sizes, limit)
    files = [_file_name(number, len(shards)) for number in range(len(shards))]
    given = iter(tensors)
    for names, file in zip(shards, files, strict=True):
        values: dict[str, Tensor] = {}
        for name in names:
            got, value = next(given)
            if got != name or (tuple(value.shape), value.dtype) != described[name]:
                raise DataError(f"{name}: came as {got} {tuple(value.shape)} {value.dtype}, not as {described[name]}")
            values[name] = value.contiguous()
        try:
            save_file(values, str(atomic_file.partial_path(folder / file)), metadata={"format": "pt"})
            atomic_file.commit(folder / file)
        except OSError as error:
            atomic_file.discard(folder / file)
            raise UserError(f"{folder / file}: cannot be written: {error}") from None
    if len(shards) > 1:
        where = {name: file for names, file in zip(shards, files, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        atomic_file.write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    return [folder / file for file in files]


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"
