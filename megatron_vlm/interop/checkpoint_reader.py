"""Tensors of a checkpoint of this project by their global name, without building the model: any layout that saved it."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_vlm.config.model import LoraConfig
from megatron_vlm.errors import DataError
from megatron_vlm.interop.contents_table import read_contents
from megatron_vlm.interop.layouts import Shape
from megatron_vlm.interop.model_tensors import LANGUAGE, PROJECTOR, VISION


class CheckpointTensors:
    """The model's tensors in a checkpoint folder; optimiser state is passed over.

    Low-rank updates are added to their matrices as these are read, and are no tensors of their own.

    Args:
        lora: of the checkpoint's configuration.
        with_updates: False leaves them out: the matrices as they were before.

    Raises DataError where megatron-core's table of contents cannot be read.
    """

    def __init__(self, checkpoint: Path, lora: LoraConfig, with_updates: bool = True) -> None:
        self.checkpoint, self._lora, self._with_updates = checkpoint, lora, with_updates
        contents = read_contents(checkpoint)
        self._chunks: dict[str, list[tuple[Any, Any]]] = {}
        for index, place in contents.storage_data.items():
            self._chunks.setdefault(index.fqn, []).append((index.offset, place))
        described = contents.state_dict_metadata
        self._described: dict[str, TensorStorageMetadata] = {
            name: one
            for name, one in described.items()
            if isinstance(one, TensorStorageMetadata) and name.startswith((LANGUAGE, VISION, PROJECTOR))
        }
        self.shapes: dict[str, Shape] = {
            name: tuple(one.size) for name, one in self._described.items() if not name.endswith((".lora_a", ".lora_b"))
        }

    def dtype(self, name: str) -> torch.dtype:
        return self._described[name].properties.dtype

    def read(self, name: str) -> Tensor:
        """The whole tensor, put together of the pieces that ranks wrote, with its low-rank update if it has one.

        Raises DataError where a file is damaged or pieces are missing; KeyError where there is none of that name.
        """
        whole, update = self._read(name), self.read_update(name)
        if update is None or not self._with_updates:
            return whole
        a, b = update
        return (whole.float() + self._lora.alpha / self._lora.rank * (b.float() @ a.float())).to(whole.dtype)

    def read_update(self, name: str) -> tuple[Tensor, Tensor] | None:
        """The low-rank matrices beside a weight: A `[rank, in]` and B `[out, rank]`; None where it has none."""
        root = name.removesuffix("weight")
        if not name.endswith(".weight") or f"{root}lora_a" not in self._described:
            return None
        return self._read(f"{root}lora_a"), self._read(f"{root}lora_b")

    def _read(self, name: str) -> Tensor:
        described = self._described[name]
        whole = torch.empty(described.size, dtype=described.properties.dtype)
        filled = 0
        for offset, place in self._chunks.get(name, ()):
            piece = self._piece(name, place)
            at = tuple(slice(o, o + n) for o, n in zip(offset or (0,) * whole.dim(), piece.shape, strict=True))
            whole[at] = piece
            filled += piece.numel()
        if filled != whole.numel():
            raise DataError(f"{self.checkpoint}: {name} is not whole in it; take an earlier checkpoint")
        return whole

    def _piece(self, name: str, place: Any) -> Tensor:
        path = self.checkpoint / place.relative_path
        try:
            with open(path, "rb") as file:
                file.seek(place.offset)
                data = io.BytesIO(file.read(place.length))
            piece: Tensor = torch.load(data, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise DataError(f"{path}: {name} cannot be read ({error}); megatron-vlm inspect --verify tells more") from None
        return piece
