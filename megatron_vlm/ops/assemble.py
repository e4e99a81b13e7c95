"""Assembling packed documents into the flat arrays that one micro-batch of training needs.

`assemble_packs` takes segments of ids that are in memory; `assemble_spans` takes spans of indexed datasets and reads them
where they are mapped. Both are one native call for a whole micro-batch, with the interpreter lock released, that writes
straight into the buffers it is given. The numpy reference gives the same arrays, bit for bit: it says most plainly what they
are, and serves where the extension was not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.ops.native import native_operators

#: `label_modality` of a position without loss; a segment of this modality has no loss anywhere
MODALITY_NONE = 0
#: text of a document that holds no picture
MODALITY_TEXT = 1
#: text of a document that holds a picture
MODALITY_CAPTION = 2
#: an image placeholder, in `token_modality`
MODALITY_IMAGE = 3

_MODALITIES = (MODALITY_NONE, MODALITY_TEXT, MODALITY_CAPTION)
# Attention kernels read cu_seqlens as 32-bit integers.
_MOST_POSITIONS = int(np.iinfo(np.int32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """A document, or a piece of one, that attends to nothing but itself.

    Attributes:
        ids: int32[n + 1] token ids, image placeholders already expanded. The first n are the model's input,
            the last n are their labels. Any stride will do; what is not contiguous is copied.
        modality: one of the `MODALITY_*` constants; what its labels count as in the losses by modality.
        loss_from: labels of positions before this one carry no loss, so that a question can be read and
            only its answer learnt. A value of n or more leaves the segment without loss.
        masked: ranges [begin, end) of ids that are not learnt as labels: the turns of a user in a conversation.
    """

    ids: npt.NDArray[np.int32]
    modality: int
    loss_from: int = 0
    masked: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class BatchBuffers:
    """Where a micro-batch of T positions is written: numpy arrays that the caller owns, in pinned memory for a GPU.

    The arrays are those of the same names in `PackedBatch`.
    """

    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.float32]
    position_ids: npt.NDArray[np.int64]
    label_modality: npt.NDArray[np.uint8]
    token_modality: npt.NDArray[np.uint8]
    row_index: npt.NDArray[np.int32]

    @classmethod
    def allocate(cls, positions: int) -> BatchBuffers:
        return cls(*(np.empty(positions, dtype) for dtype in cls.dtypes().values()))

    @classmethod
    def dtypes(cls) -> dict[str, type[np.generic]]:
        """dtype of each array, in order."""
        return {
            "tokens": np.int64,
            "labels": np.int64,
            "loss_mask": np.float32,
            "position_ids": np.int64,
            "label_modality": np.uint8,
            "token_modality": np.uint8,
            "row_index": np.int32,
        }

    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    def batch(self, cu_seqlens: npt.NDArray[np.int32], max_seqlen: int, image_rows: int) -> PackedBatch:
        """These arrays, written, with what is known of them since."""
        written = {field.name: getattr(self, field.name) for field in fields(self)}
        return PackedBatch(**written, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, image_rows=image_rows)


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """One micro-batch: packs laid end to end.

    T = packs * sequence_length positions, S segments. Padding at the end of a pack is a segment of its own, so that no
    document attends to it.

    Attributes:
        tokens: int64[T], `pad_id` where padded.
        labels: int64[T], the id that follows in the segment; `pad_id` where padded and where that id is an
            image placeholder.
        loss_mask: float32[T], 1 where the label is learnt and 0 elsewhere.
        position_ids: int64[T], 0 at the start of each segment and counting up, in padding too.
        label_modality: uint8[T], the segment's modality where `loss_mask` is 1 and `MODALITY_NONE` elsewhere.
        token_modality: uint8[T], what the token is: text of a document without or with pictures, an image placeholder, or
            `MODALITY_NONE` for padding. Text of a segment without loss counts as `MODALITY_TEXT`.
        row_index: int32[T], k at the k-th image placeholder of the batch, -1 elsewhere: which row of the image embeddings
            stands there (`megatron_vlm.ops.fuse`).
        cu_seqlens: int32[S + 1], 0 and then the end of each segment, strictly ascending up to T.
        max_seqlen: length of the longest segment, 0 in a batch without packs.
        image_rows: number of image placeholders.
    """

    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    loss_mask: npt.NDArray[np.float32]
    position_ids: npt.NDArray[np.int64]
    label_modality: npt.NDArray[np.uint8]
    token_modality: npt.NDArray[np.uint8]
    row_index: npt.NDArray[np.int32]
    cu_seqlens: npt.NDArray[np.int32]
    max_seqlen: int
    image_rows: int


def assemble_packs(
    packs: Sequence[Sequence[Segment]],
    *,
    sequence_length: int,
    image_token_id: int,
    pad_id: int,
    buffers: BatchBuffers | None = None,
) -> PackedBatch:
    """Lay each pack's segments one after another and pad it to `sequence_length` positions.

    Without the extension `assemble_packs_reference` does it. The result's arrays are those of `buffers` where these are
    given: arrays of T elements each.

    Raises:
        ValueError: naming the pack and the segment (both from 0), where ids are not a one-dimensional int32
            array or fewer than two, where the modality is unknown, `loss_from` negative or a masked range turned round, or
            where a pack's segments have more positions than `sequence_length`; also where the batch could not be
            addressed (`sequence_length` below 1, 2^31 positions or more) or its padding not be told from an
            image (`pad_id` equal to `image_token_id`), or where buffers have another size.
    """
    sizes = {"sequence_length": sequence_length, "image_token_id": image_token_id, "pad_id": pad_id}
    native = native_operators()
    if native is None:
        batch = assemble_packs_reference(packs, **sizes)
        return batch if buffers is None else _copied(batch, buffers)
    _check(packs, sequence_length, image_token_id, pad_id)
    segments = [segment for pack in packs for segment in pack]
    buffers = buffers or BatchBuffers.allocate(len(packs) * sequence_length)
    cu_seqlens, max_seqlen, image_rows = native.assemble_packs(
        # contiguous ids are passed as they are, others are copied
        [np.ascontiguousarray(segment.ids, np.int32) for segment in segments],
        np.array([segment.modality for segment in segments], np.uint8),
        np.array([segment.loss_from for segment in segments], np.int64),
        np.array([len(segment.masked) for segment in segments], np.int64),
        np.array([ids for segment in segments for ids in segment.masked], np.int64).reshape(-1, 2),
        np.array([len(pack) for pack in packs], np.int64),
        sequence_length,
        image_token_id,
        pad_id,
        native.Outputs(*buffers.arrays()),
    )
    return buffers.batch(cu_seqlens, max_seqlen, image_rows)


def assemble_packs_reference(
    packs: Sequence[Sequence[Segment]], *, sequence_length: int, image_token_id: int, pad_id: int
) -> PackedBatch:
    """`assemble_packs` in plain numpy: the same arguments, result and errors."""
    _check(packs, sequence_length, image_token_id, pad_id)
    positions = len(packs) * sequence_length
    tokens = np.full(positions, pad_id, np.int64)
    labels = np.full(positions, pad_id, np.int64)
    position_ids = np.zeros(positions, np.int64)
    label_modality = np.zeros(positions, np.uint8)
    token_modality = np.zeros(positions, np.uint8)
    ends = [0]
    for number, pack in enumerate(packs):
        at, pack_end = number * sequence_length, (number + 1) * sequence_length
        for segment in pack:
            end = at + len(segment.ids) - 1
            following = segment.ids[1:]
            offsets = np.arange(end - at)
            is_image = following == image_token_id
            tokens[at:end] = segment.ids[:-1]
            labels[at:end] = np.where(is_image, pad_id, following)
            position_ids[at:end] = offsets
            learnt = (offsets >= segment.loss_from) & ~is_image
            for begin, stop in segment.masked:
                learnt &= (offsets + 1 < begin) | (offsets + 1 >= stop)
            label_modality[at:end] = np.where(learnt, segment.modality, MODALITY_NONE)
            kind = segment.modality or MODALITY_TEXT
            token_modality[at:end] = np.where(segment.ids[:-1] == image_token_id, MODALITY_IMAGE, kind)
            ends.append(end)
            at = end
        if at < pack_end:
            position_ids[at:pack_end] = np.arange(pack_end - at)
            ends.append(pack_end)
    cu_seqlens = np.array(ends, np.int32)
    is_row = tokens == image_token_id
    return PackedBatch(
        tokens=tokens,
        labels=labels,
        loss_mask=(label_modality != MODALITY_NONE).astype(np.float32),
        position_ids=position_ids,
        label_modality=label_modality,
        token_modality=token_modality,
        row_index=np.where(is_row, np.cumsum(is_row) - 1, -1).astype(np.int32),
        cu_seqlens=cu_seqlens,
        max_seqlen=int(np.diff(cu_seqlens).max(initial=0)),
        image_rows=int(is_row.sum()),
    )


def _copied(batch: PackedBatch, buffers: BatchBuffers) -> PackedBatch:
    for field in fields(buffers):
        target, value = getattr(buffers, field.name), getattr(batch, field.name)
        if target.shape != value.shape:
            raise ValueError(f"{field.name} must have {len(value)} elements")
        target[:] = value
    return buffers.batch(batch.cu_seqlens, batch.max_seqlen, batch.image_rows)


def _check(packs: Sequence[Sequence[Segment]], sequence_length: int, image_token_id: int, pad_id: int) -> None:
    if sequence_length < 1:
        raise ValueError(f"sequence_length is {sequence_length}, but a pack needs at least 1 position")
    if len(packs) * sequence_length > _MOST_POSITIONS:
        raise ValueError(
            f"{len(packs)} packs of {sequence_length} positions are more than {_MOST_POSITIONS}, "
            "the most that cu_seqlens (int32) can count: take fewer packs at once"
        )
    if pad_id == image_token_id:
        raise ValueError(f"pad_id and image_token_id are both {pad_id}: padding would be taken for an image")
    for number, pack in enumerate(packs):
        room = sequence_length
        for index, segment in enumerate(pack):
            fault = _fault(segment, room)
            if fault:
                raise ValueError(f"pack {number}, segment {index}: {fault}")
            room -= len(segment.ids) - 1


def _fault(segment: Segment, room: int) -> str | None:
    """Say what is wrong with a segment for which `room` positions are left, or None."""
    ids = segment.ids
    if not isinstance(ids, np.ndarray) or ids.dtype != np.int32 or ids.ndim != 1:
        found = f"{ids.dtype}{list(ids.shape)}" if isinstance(ids, np.ndarray) else type(ids).__name__
        return f"ids must be an int32 array of one dimension, not {found}"
    if len(ids) < 2:
        return f"has {len(ids)} ids, but needs at least 2: one position and its label"
    if len(ids) - 1 > room:
        return f"has {len(ids) - 1} positions, but only {room} are left in the pack"
    if segment.modality not in _MODALITIES:
        return f"modality is {segment.modality}, but must be one of {_MODALITIES}"
    if segment.loss_from < 0:
        return f"loss_from is {segment.loss_from}, but must not be negative"
    for begin, end in segment.masked:
        if begin > end:
            return f"masked holds the range {begin} to {end}, which ends before it begins"
    return None
