"""Memory that a rank shares with its workers: as many slots as micro-batches may wait, each of one size."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.kept_features.feature_reader import Features
from megatron_vlm.data.micro_batch_arrays import MicroBatchMemory, Pixels
from megatron_vlm.errors import UserError
from megatron_vlm.ops.assemble import BatchBuffers

_LINE = 64  # a cache line, so that no array begins inside another's


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """Where in a slot the arrays of a micro-batch of `packs` packs are. Both sides compute it from the shape alone."""

    packs: int
    shape: StepShape

    @property
    def positions(self) -> int:
        return self.packs * self.shape.sequence_length

    @property
    def most_pictures(self) -> int:
        """A picture is whole in its pack, so that there is never room for more."""
        if self._native:
            return self.positions
        return self.packs * (self.shape.sequence_length // self.shape.image_tokens)

    @property
    def _native(self) -> bool:
        return self.shape.picture.native

    @property
    def _most_bytes(self) -> int:
        """Of pixels, or of features."""
        if self.shape.features:
            return self.positions * 2 * self.shape.features
        if self._native:
            return self.positions * 3 * (self.shape.patch * self.shape.fold) ** 2
        return self.most_pictures * 3 * self.shape.image_size**2

    @property
    def offsets(self) -> tuple[int, ...]:
        """Of the arrays of `BatchBuffers`, of cu_seqlens (a segment has a position or more), of the pictures' sizes where
        they have different ones, of the pixels; then the end."""
        sizes = [self.positions * np.dtype(dtype).itemsize for dtype in BatchBuffers.dtypes().values()]
        sizes += [4 * (self.positions + 1), 8 * self.most_pictures * self._native, self._most_bytes]
        found = [0]
        for size in sizes:
            found.append(found[-1] + -(-size // _LINE) * _LINE)
        return tuple(found)

    @property
    def size(self) -> int:
        """Bytes, in whole pages: a slot that holds text alone takes no memory for its pixels."""
        return -(-self.offsets[-1] // mmap.PAGESIZE) * mmap.PAGESIZE

    def buffers(self, slot: memoryview) -> BatchBuffers:
        starts = zip(self.offsets, BatchBuffers.dtypes().values(), strict=False)
        return BatchBuffers(*(np.frombuffer(slot, dtype, self.positions, start) for start, dtype in starts))

    def cu_seqlens(self, slot: memoryview, count: int) -> npt.NDArray[np.int32]:
        if not 1 <= count <= self.positions + 1:
            raise ValueError(f"cu_seqlens of {count} numbers for {self.positions} positions")
        return np.frombuffer(slot, np.int32, count, self.offsets[-4])

    def sizes(self, slot: memoryview, pictures: int) -> npt.NDArray[np.int32]:
        """int32 `[pictures, 2]`, heights and widths of pictures that keep their aspect."""
        self._check(pictures)
        flat = np.frombuffer(slot, np.int32, 2 * pictures, self.offsets[-3])
        return flat.reshape(pictures, 2)

    def pixels(self, slot: memoryview, pictures: int) -> Pixels:
        """uint8 `[pictures, size, size, 3]`."""
        self._check(pictures)
        size = self.shape.image_size
        return self.pixel_bytes(slot, pictures * 3 * size**2).reshape(pictures, size, size, 3)

    def features(self, slot: memoryview, rows: int) -> Features:
        """uint16 `[rows, numbers of a row]`."""
        numbers = self.shape.features
        return self.pixel_bytes(slot, 2 * rows * numbers).view(np.uint16).reshape(rows, numbers)

    def pixel_bytes(self, slot: memoryview, count: int) -> Pixels:
        """The first `count` bytes of the pixels, or of what stands in their place."""
        if not 0 <= count <= self._most_bytes:
            raise ValueError(f"{count} bytes of pixels in a micro-batch that has room for {self._most_bytes}")
        return np.frombuffer(slot, np.uint8, count, self.offsets[-2])

    def _check(self, pictures: int) -> None:
        if not 0 <= pictures <= self.most_pictures:
            raise ValueError(f"{pictures} pictures in a micro-batch that has room for {self.most_pictures}")

    def memory(self, slot: memoryview) -> MicroBatchMemory:
        return MicroBatchMemory(self.buffers(slot), lambda count: self.pixel_bytes(slot, count))


class SharedSlots:
    """`count` slots of `size` bytes in a file without a name, mapped. Its memory goes when the last process with it does.

    Memory that a file system gives when it is first written: where pictures are few, slots take little of their size.

    Raises:
        UserError: there is not that much memory, or no place for the file.
    """

    def __init__(self, count: int, size: int, descriptor: int | None = None) -> None:
        self.count, self.size = count, size
        self.descriptor = descriptor if descriptor is not None else _nameless_file(count, size)
        self._map = mmap.mmap(self.descriptor, count * size)
        self._view = memoryview(self._map)

    def slot(self, number: int) -> memoryview:
        if not 0 <= number < self.count:
            raise ValueError(f"slot {number} of {self.count}")
        return self._view[number * self.size : (number + 1) * self.size]

    def address(self) -> tuple[int, int]:
        """Where the mapping is in this process, and its bytes: for a device's driver to pin."""
        return np.frombuffer(self._view, np.uint8).ctypes.data, self.count * self.size

    def close(self) -> None:
        """Forget the file. The memory stays as long as an array in it does."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def slots_needed(shapes: Iterable[StepShape], ranks: int, steps: int) -> tuple[int, int]:
    """Slots and their bytes for `steps` steps of any of `shapes`, of which a rank computes one `ranks`-th."""
    count = size = 1
    for shape in shapes:
        packs = shape.global_batch_size // ranks
        count = max(count, math.ceil(packs / shape.micro_batch_size))
        size = max(size, SlotLayout(min(packs, shape.micro_batch_size), shape).size)
    return count * steps, size


def _nameless_file(count: int, size: int) -> int:
    need = count * size
    what = (
        f"the loader needs up to {need / 1e6:.0f} MB of memory that its workers share ({count} micro-batches of "
        f"{size / 1e6:.1f} MB)"
    )
    remedy = "lower loader.prefetch_steps or schedule.micro_batch_size, or set loader.workers to 0"
    free = _free_memory()
    if free is not None and need > free:
        raise UserError(f"{what}, and {free / 1e6:.0f} MB are free; {remedy}")
    if hasattr(os, "memfd_create"):  # no mount sets its size, as containers do with /dev/shm
        descriptor = os.memfd_create("megatron_vlm-loader", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, need)
        return descriptor
    return file_on_disk(need, what, remedy)


def file_on_disk(need: int, what: str, remedy: str) -> int:
    """A descriptor of a file of `need` bytes in the folder for temporary files, unlinked, its blocks taken."""
    folder = tempfile.gettempdir()
    descriptor, path = tempfile.mkstemp(prefix="megatron_vlm-loader-")
    os.unlink(path)
    try:
        # blocks that are not there when they are written would kill the process with a SIGBUS
        os.posix_fallocate(descriptor, 0, need)
    except OSError as error:
        os.close(descriptor)
        raise UserError(f"{what}: {folder}: {error.strerror}; {remedy}, or set TMPDIR to a larger place") from None
    return descriptor


def _free_memory() -> int | None:
    """Bytes that this process may take, as far as the system says."""
    found: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            found.append(int(most) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found, default=None)
