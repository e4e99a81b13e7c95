"""Packs into the tensors of one micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.broken_pictures import BrokenPicture
from megatron_vlm.data.documents import Span
from megatron_vlm.data.micro_batch_arrays import (
    ArrayMaker,
    MicroBatchArrays,
    MicroBatchMemory,
    Sizes,
    check_picture_rows,
)
from megatron_vlm.data.picture_input import PictureInput
from megatron_vlm.ops.assemble import BatchBuffers, Segment, assemble_packs


@dataclass(frozen=True)
class MicroBatch:
    """A row of packs laid end to end, t = packs * sequence_length positions.

    tokens, labels, position_ids int64 `[1, t]`; loss_mask fp32 `[1, t]`; label_modality, token_modality uint8 `[1, t]`;
    row_index int32 `[1, t]`, the picture row that stands at a position or -1; cu_seqlens int32 `[documents + 1]`; pixels
    uint8 `[pictures, size, size, 3]`, or, where pictures keep their aspect, `[bytes]` with one after another, of the `sizes`
    (height, width); None on ranks that hold no encoder. Where the encoder's features are read instead, features bf16
    `[image_rows, numbers of a row]`, a picture's patches one after another.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    label_modality: Tensor
    token_modality: Tensor
    row_index: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    pixels: Tensor | None
    #: lengths of the documents, for the count of operations
    document_lengths: tuple[int, ...]
    pictures: int
    #: placeholders of all pictures together
    image_rows: int
    #: pictures that did not decode and are grey; what becomes of them is decided by all ranks together
    broken: tuple[BrokenPicture, ...] = ()
    sizes: Sizes | None = None
    features: Tensor | None = None
    #: makes the device wait until the tensors are there; None: they are
    arrival: Callable[[], None] | None = None

    def arrive(self) -> None:
        """To be called before the tensors are first used on their device (`training.device_copies`)."""
        if self.arrival is not None:
            self.arrival()

    def tensors(self) -> list[Tensor]:
        return [value for value in self.__dict__.values() if isinstance(value, Tensor)]

    @property
    def picture_input(self) -> PictureInput | None:
        """Its pictures as the encoder takes them; None without any, and on ranks that do not read them."""
        if not self.pictures or (self.pixels is None and self.features is None):
            return None
        return PictureInput(self.pictures, self.image_rows, self.pixels, self.sizes, self.features)

    def to(self, device: torch.device) -> MicroBatch:
        if device.type == "cpu":
            return self
        moved = {
            name: value.to(device, non_blocking=True) for name, value in self.__dict__.items() if isinstance(value, Tensor)
        }
        return MicroBatch(**{**self.__dict__, **moved})


def make_micro_batch(
    segments: Sequence[Sequence[Segment]],
    pixels: Sequence[np.ndarray] | None,
    tokens: TokenCounts,
    shape: StepShape,
    sizes: Sizes | None = None,
) -> MicroBatch:
    """Segments of each pack and the decoded pictures in reading order (None: this rank holds no encoder).

    `sizes` of the pictures, (height, width), are needed where they keep their aspect, also on ranks without pixels.
    """
    sequence_length = shape.sequence_length
    batch = assemble_packs(
        segments, sequence_length=sequence_length, image_token_id=tokens.image_token_id, pad_id=tokens.pad_id
    )
    stacked = None
    pictures = len(sizes) if sizes is not None else batch.image_rows // shape.image_tokens
    if pixels is not None:
        check_picture_rows(len(pixels), sizes, batch.image_rows, shape.picture)
        if sizes is not None:
            stacked = np.concatenate([p.reshape(-1) for p in pixels]) if pixels else np.empty(0, np.uint8)
        else:
            stacked = np.stack(pixels) if pixels else np.empty((0, shape.image_size, shape.image_size, 3), np.uint8)
    return as_tensors(MicroBatchArrays(batch, stacked, pictures, sizes=sizes))


def as_tensors(arrays: MicroBatchArrays) -> MicroBatch:
    """The same memory as tensors: nothing is copied."""
    batch = arrays.batch
    rows: dict[str, Any] = {name: torch.from_numpy(getattr(batch, name)).unsqueeze(0) for name in BatchBuffers.dtypes()}
    return MicroBatch(
        **rows,
        cu_seqlens=torch.from_numpy(batch.cu_seqlens),
        max_seqlen=batch.max_seqlen,
        pixels=None if arrays.pixels is None else torch.from_numpy(arrays.pixels),
        document_lengths=tuple(np.diff(batch.cu_seqlens).tolist()),
        pictures=arrays.pictures,
        image_rows=batch.image_rows,
        broken=arrays.broken,
        sizes=arrays.sizes,
        # numpy has no bf16: the bits
        features=None if arrays.features is None else torch.from_numpy(arrays.features.view(np.int16)).view(torch.bfloat16),
    )


def pinned_buffers(positions: int) -> BatchBuffers:
    """Buffers from which a copy to a GPU runs beside everything else."""
    dtypes = {np.int64: torch.int64, np.int32: torch.int32, np.float32: torch.float32, np.uint8: torch.uint8}
    arrays = (torch.empty(positions, dtype=dtypes[d], pin_memory=True).numpy() for d in BatchBuffers.dtypes().values())
    return BatchBuffers(*arrays)


class MicroBatchMaker:
    """Makes the micro-batches of spans in this process; what workers do is `ArrayMaker` alone."""

    def __init__(self, arrays: ArrayMaker, pin_memory: bool = False) -> None:
        self.arrays, self.pin_memory = arrays, pin_memory

    def __call__(self, packs: Sequence[Sequence[Span]], shape: StepShape) -> MicroBatch:
        """Raises DataError as `ArrayMaker` does; pictures that do not decode are grey and named in the batch."""
        buffers = pinned_buffers(len(packs) * shape.sequence_length) if self.pin_memory else None
        return as_tensors(self.arrays(packs, shape, MicroBatchMemory(buffers)))
