"""A checkpoint as megatron-core plans it: which rank writes which tensors to which file; and the bytes of those files.

megatron-core's own asynchronous saves write from a fork of the rank, or from a spawned worker that sees CPU tensors change
under it, and fork a process a file even where the save is synchronous. Its planning, its format and its table of contents
are used as they are; between the two, a rank's files are made here: into shared memory, or to disk.
"""

from __future__ import annotations

import io
import os
import queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult

from megatron_vlm.parallel.core_release import sharded_save_options
from megatron_vlm.training.checkpoint.checksums import FileChecksum, checksum_of
from megatron_vlm.training.checkpoint.containers import Containers
from megatron_vlm.training.checkpoint.shared_memory import MemoryFile, SharedMemory

_BACKEND = ("torch_dist", 1)
_FILES = 2  # of a rank, as megatron-core 0.16 has it; 0.19 would make one
_ENTRY_BYTES = 4096  # more than what a tensor's container takes beside its values


def _write_common(common: dict[str, Any], folder: Path) -> str | None:
    """What is not sharded, by rank 0, as common.pt: every line of megatron-core reads it there, and 0.16 nowhere else.

    Collectives come after it: what went wrong is returned, or the other ranks would wait for ever.
    """
    if dist.get_rank():
        return None
    try:
        torch.save(common, folder / "common.pt")
    except (OSError, RuntimeError) as error:
        return str(error)
    return None


class _ShardedPart(TorchDistSaveShardedStrategy):
    """Keeps the plan. megatron-core would wrap it into a request for its own writers, whose last act on rank 0 cannot fail
    without leaving the other ranks in a collective."""

    def __init__(self) -> None:
        super().__init__(*_BACKEND, thread_count=_FILES)
        self.writer: filesystem_async.FileSystemWriterAsync
        self.metadata: Metadata | None = None

    def _get_save_and_finalize_callbacks(self, writer: Any, save_state_dict_ret: Any, *strategy: Any) -> Any:
        self.writer, self.metadata = writer, save_state_dict_ret[1]
        return super()._get_save_and_finalize_callbacks(writer, save_state_dict_ret, *strategy)


def _as_whole(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a tensor of its own. megatron-core clones what is a view, and what is saved here is copied before
    the next step anyway."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or not tensor.numel():
        return tensor
    if tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size():
        return tensor
    return torch.from_numpy(tensor.view(torch.uint8).numpy() if tensor.dim() else tensor.numpy()).view(tensor.dtype)


def _without_views(state: dict[str, Any]) -> dict[str, Any]:
    """`state` with its factories built and the memory of views as tensors of their own."""

    def whole(value: Any) -> Any:
        if isinstance(value, ShardedTensor) and value.data is not None:
            value.data = _as_whole(value.data.detach())
        return value

    apply_factories(state)
    dict_list_map_inplace(whole, state)
    return state


class PlannedSave:
    """This rank's part of a checkpoint in `folder`. Collective; the small common part is on disk when it returns.

    `state` holds megatron-core's sharded tensors, which still share memory with the model: make the files before the next
    step. `error` is what went wrong on this rank.
    """

    def __init__(self, state: dict[str, Any], folder: Path, content_metadata: dict[str, Any], validate: bool) -> None:
        # the queue of megatron-core's forked writers comes from a process that is spawned for it; none is used here
        if filesystem_async._results_queue is None:
            filesystem_async._results_queue = queue.Queue()
        # the steps of `dist_checkpointing.save`, which has no place for a common part that cannot be written
        tensors, common = save_preprocess({**_without_views(state), "content_metadata": content_metadata}, validate)
        self.folder, self.error = folder, _write_common(common, folder)
        sharded = _ShardedPart()
        sharded.async_save(tensors, str(folder), **sharded_save_options())
        self.results: list[WriteResult] = []
        self._writer, self._metadata = sharded.writer, sharded.metadata

    def _write(self, bucket: filesystem_async.WriteBucket, stream: io.IOBase, containers: Containers) -> None:
        _, name, (byte_items, tensor_items) = bucket
        for item, data in [*byte_items, *tensor_items]:
            offset = stream.tell()
            if isinstance(data, torch.Tensor):
                containers.write(data.detach().to("cpu"), stream)
            else:
                stream.write(data.getbuffer())
            length = stream.tell() - offset
            self.results.append(WriteResult(item.index, length, _StorageInfo(name, offset, length)))

    def copy_to(self, memory: SharedMemory, containers: Containers) -> list[tuple[str, int, int]]:
        """This rank's files as bytes in shared memory: path, first byte, bytes of each. Raises OSError, MemoryError."""
        buckets = self._writer.write_buckets or []
        need = 0
        for _, _, (byte_items, tensor_items) in buckets:
            need += sum(data.getbuffer().nbytes + _ENTRY_BYTES for _, data in byte_items)
            need += sum(data.numel() * data.element_size() + _ENTRY_BYTES for _, data in tensor_items)
        memory.reserve(need + _ENTRY_BYTES)
        files, first = [], 0
        for bucket in buckets:
            stream = MemoryFile(memory, first)
            self._write(bucket, stream, containers)
            files.append((str(self.folder / bucket[1]), first, stream.length))
            first = stream.next_page
        self.release()
        return files

    def write_files(self, containers: Containers) -> dict[str, FileChecksum]:
        """This rank's files on disk, flushed; checksums by path. Raises OSError; torch makes a RuntimeError of some."""
        written = {}
        for bucket in self._writer.write_buckets or []:
            path = self.folder / bucket[1]
            with open(path, "xb") as stream:
                self._write(bucket, stream, containers)
                stream.flush()
                os.fsync(stream.fileno())
            written[str(path)] = checksum_of(path)
        self.release()
        return written

    def release(self) -> None:
        """Let the tensors go: megatron-core copied those that are views."""
        self._writer.write_buckets = []

    def write_contents(self, results: list[list[WriteResult]]) -> None:
        """On rank 0, when all files are there: megatron-core's table of what is where. Raises OSError, RuntimeError."""
        assert self._metadata is not None
        self._writer.finish(self._metadata, results)
        save_config(CheckpointingConfig(*_BACKEND), str(self.folder))
