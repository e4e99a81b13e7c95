"""The table of contents of a checkpoint (`.metadata`), a pickle of PyTorch's, read without running what it might hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from megatron_vlm.errors import DataError

_METADATA = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
#: everything that torch and megatron-core put into one; attribute types of torch itself are tried besides
_KNOWN = {
    (_METADATA, name)
    for name in (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    *((_PLANNER, name) for name in ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("torch", "device"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _KNOWN or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no table of contents holds")


def read_contents(checkpoint: Path) -> Metadata:
    """Raises DataError where it is missing, damaged, or holds anything else."""
    path = checkpoint / ".metadata"
    try:
        with open(path, "rb") as file:
            contents = _Unpickler(file).load()
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); take an earlier checkpoint") from None
    if not isinstance(contents, Metadata):
        raise DataError(f"{path}: is no table of contents of a checkpoint")
    return contents
