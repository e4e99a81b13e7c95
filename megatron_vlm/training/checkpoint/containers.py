"""Tensors in the files that torch.save makes, with one copy of their values.

torch.save passes a tensor's bytes on several times on their way into a stream, which takes three to five times as long as
copying them. What it writes before and after them depends on shape and dtype alone: that is made once for tensors of a kind,
and the values are written between.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch


class _Frame(NamedTuple):
    before: bytes
    after: bytes


class Writes(Protocol):
    """What is written to."""

    def write(self, data: Any, /) -> int: ...


class Containers:
    """Writes tensors as torch.save does, without its checksums; one for a whole run."""

    def __init__(self) -> None:
        self._frames: dict[tuple[torch.Size, torch.dtype], _Frame] = {}

    def write(self, tensor: torch.Tensor, stream: Writes) -> None:
        """`tensor`: contiguous, on the CPU, alone in its storage or a view of it, whose values alone are written."""
        kind = tensor.shape, tensor.dtype
        if kind not in self._frames:
            # values of nothing but its own: torch.save writes whole storages
            self._frames[kind] = _frame(torch.zeros(tensor.shape, dtype=tensor.dtype))
        frame = self._frames[kind]
        stream.write(frame.before)
        if tensor.numel():
            values: npt.NDArray[np.uint8] = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
            stream.write(values.data)
        stream.write(frame.after)


def _frame(tensor: torch.Tensor) -> _Frame:
    stream = io.BytesIO()
    with _without_crc():
        torch.save(tensor, stream)
    content = stream.getbuffer()
    size = tensor.numel() * tensor.element_size()
    with zipfile.ZipFile(stream) as archive:
        (entry,) = (entry for entry in archive.infolist() if entry.filename.endswith("/data/0"))
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size:
        raise RuntimeError("torch.save lays a tensor's values out in a way that is not known here")
    # a local header is 30 bytes, a name and an extra field, whose lengths stand at its end (PKWARE's APPNOTE, 4.3.7)
    name, extra = struct.unpack("<HH", content[entry.header_offset + 26 : entry.header_offset + 30])
    begin = entry.header_offset + 30 + name + extra
    return _Frame(bytes(content[:begin]), bytes(content[begin + size :]))


@contextmanager
def _without_crc() -> Iterator[None]:
    """Frames are used for other values, and nothing reads the CRC-32: checksums.json says more."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)
