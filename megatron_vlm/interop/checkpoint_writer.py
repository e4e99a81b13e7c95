"""A checkpoint of this project written tensor by tensor, without ranks and without a model: whole tensors by global name.

What comes out is what `training.checkpoint` saves, in megatron-core's torch_dist format with run.json and checksums.json,
save that there is no optimiser state; every layout loads its part of each tensor.
"""

from __future__ import annotations

import io
import json
import pickle
import secrets
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_vlm import __version__
from megatron_vlm.config.loading import to_map, to_yaml
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data import atomic_file
from megatron_vlm.errors import UserError
from megatron_vlm.training.checkpoint.checksums import CHECKSUM_FILE, checksum_of, checksum_text
from megatron_vlm.training.checkpoint.folders import RUN_FILE, publish, recover, step_folder
from megatron_vlm.training.checkpoint.state import SHARDING
from megatron_vlm.training.updates import UpdateCount

_FILE_BYTES = 4 << 30


class _Files:
    """Files of a checkpoint, one after another; a new one begins where the last has reached its size."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit, self.number = folder, limit, 0
        self._stream: Any = None

    def write(self, value: object) -> _StorageInfo:
        if self._stream is not None and self._stream.tell() >= self.limit:
            self.close()
            self.number += 1
        name = f"__0_{self.number}.distcp"
        if self._stream is None:
            self._stream = open(self.folder / name, "xb")  # noqa: SIM115 - closed by close
        first = self._stream.tell()
        torch.save(value, self._stream)
        return _StorageInfo(name, first, self._stream.tell() - first)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def write_checkpoint(
    run_folder: Path,
    config: RunConfig,
    tensors: Iterable[tuple[str, Tensor]],
    facts: dict[str, Any],
    file_bytes: int = _FILE_BYTES,
) -> Path:
    """Write `run_folder`/checkpoints/step-00000000 and make it the latest; its path.

    Args:
        tensors: global name and whole tensor; one is in memory at a time.
        facts: what run.json says besides, such as tokenizer_fingerprint.
        file_bytes: size at which a file of tensors ends.

    Raises:
        UserError: it cannot be written. Nothing stays under the checkpoint's name.
    """
    folder = run_folder / "checkpoints"
    final = step_folder(folder, 0)
    partial = folder / f".{final.name}.{secrets.token_hex(4)}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recover(folder)
        partial.mkdir()
        _write_tensors(partial, tensors, file_bytes)
        torch.save({"content_metadata": dict(SHARDING)}, partial / "common.pt")
        save_config(CheckpointingConfig("torch_dist", 1), str(partial))
        run = {
            "step": 0,
            "stage": 0,
            "version": __version__,
            "distributed_optimizer": config.parallel.use_distributed_optimizer,
            "data": {},
            "config": to_map(config),
            "updates": UpdateCount().state(),
            **facts,
        }
        (partial / RUN_FILE).write_text(json.dumps(run), encoding="utf-8")
        (partial / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        for path in sorted(partial.iterdir()):
            atomic_file.sync_file(path)
        checksums = {path.name: checksum_of(path) for path in sorted(partial.iterdir())}
        (partial / CHECKSUM_FILE).write_text(checksum_text(checksums), encoding="utf-8")
        atomic_file.sync_file(partial / CHECKSUM_FILE)
        atomic_file.sync_folder(partial)
        publish(partial, final)
    except OSError as error:
        raise UserError(f"{final}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], file_bytes: int) -> None:
    described: dict[str, Any] = {}
    stored: dict[MetadataIndex, _StorageInfo] = {}
    files = _Files(folder, file_bytes)
    try:
        for name, tensor in tensors:
            value = tensor.contiguous()
            origin = torch.Size([0] * value.dim())
            described[name] = TensorStorageMetadata(
                TensorProperties.create_from_tensor(value), value.size(), [ChunkStorageMetadata(origin, value.size())]
            )
            # a view would bring the storage that it is a part of
            stored[MetadataIndex(name, origin, 0)] = files.write(value.clone() if _is_part(value) else value)
    finally:
        files.close()
    contents = Metadata(state_dict_metadata=described, storage_data=stored)
    contents.storage_meta = FileSystemWriter(str(folder)).storage_meta()
    buffer = io.BytesIO()
    pickle.dump(contents, buffer)
    (folder / ".metadata").write_bytes(buffer.getvalue())


def _is_part(value: Tensor) -> bool:
    return value.untyped_storage().nbytes() != value.numel() * value.element_size()
