"""Tensors of a checkpoint, one at a time: whatever the layout that wrote it, and without building its model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_vlm.errors import DataError
from megatron_vlm.training.checkpoint import find_checkpoint, is_complete


class CheckpointTensors:
    """Whole tensors by global name.

    Attributes:
        folder: the checkpoint's.
        shapes: of the model's tensors by name; those of the optimiser are left out.

    Raises:
        DataError: no whole checkpoint.
    """

    def __init__(self, place: Path) -> None:
        self.folder = find_checkpoint(place)
        if not is_complete(self.folder):
            raise DataError(f"{self.folder}: not a whole checkpoint; take an earlier one")
        self._reader = FileSystemReader(str(self.folder))
        stored = self._reader.read_metadata().state_dict_metadata
        self._stored = {
            name: about
            for name, about in stored.items()
            if isinstance(about, TensorStorageMetadata) and not name.startswith("optimizer.")
        }
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(about.size) for name, about in self._stored.items()}

    def read(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, in the dtype in which it was saved. Raises DataError for one that is not there."""
        about = self._stored.get(name)
        if about is None:
            raise DataError(f"{self.folder}: has no tensor {name}")
        wanted = {name: torch.empty(about.size, dtype=about.properties.dtype)}
        load(wanted, storage_reader=self._reader, no_dist=True)
        return wanted[name]
