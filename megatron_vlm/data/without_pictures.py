"""A micro-batch as if pictures that do not decode had never been in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

import torch

from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.data.micro_batch import MicroBatch
from megatron_vlm.data.micro_batch_arrays import Sizes, row_counts
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_NONE, MODALITY_TEXT


def without_pictures(
    batch: MicroBatch, broken: Collection[int], picture: int | PictureRows, policy: Literal["text", "skip"]
) -> MicroBatch:
    """The micro-batch without the pictures numbered in `broken`, in reading order from 0.

    A function of its arguments alone: every rank of a model-parallel group that applies it to its own copy has the same
    batch again, with pixels or (on ranks without the encoder) without. `batch` is left as it is; without `broken` it is
    itself what is returned.

    Positions stay where they are. Rows, pixels and `pictures` lose what is taken out, and the rows that stay are numbered
    anew: nothing is encoded in vain, and a batch that has lost all its pictures is one without pictures.

    text: the placeholders of a broken picture become a segment of their own without loss, so what stood before and after it
    is learnt as documents of their own; their labels count as text where no picture is left in the segment. The first id
    behind the picture was the label of its last placeholder, and is not learnt.

    skip: the segment that holds a broken picture has no loss, and all its pictures go. Its borders stay.

    Args:
        picture: placeholders of a picture.

    Raises:
        ValueError: a number that is no picture of this batch.
    """
    numbers = sorted(set(broken))
    if not numbers:
        return batch
    if numbers[0] < 0 or numbers[-1] >= batch.pictures:
        raise ValueError(f"broken pictures {numbers} of a micro-batch of {batch.pictures}, which are numbered from 0")
    rows = batch.row_index[0].cpu()
    counts = torch.tensor(row_counts(batch.pictures, batch.sizes, picture))  # placeholders of every picture
    first = counts.cumsum(0) - counts
    starts = torch.nonzero(torch.isin(rows, first)).flatten()  # of every picture, in reading order
    borders = batch.cu_seqlens.cpu().long()
    segments = torch.searchsorted(borders, starts, right=True) - 1  # of every picture
    gone = torch.zeros(batch.pictures, dtype=torch.bool)
    gone[numbers] = True
    if policy == "skip":
        skipped = segments[gone].unique()
        silent = _inside(borders[skipped], borders[skipped + 1], rows.numel())
        gone = torch.isin(segments, skipped)
        return _learning(_taken_out(batch, gone, counts), silent, silent)
    begins, ends = starts[gone], (starts + counts)[gone]
    placeholders = _inside(begins, ends, rows.numel())
    cut = torch.cat([borders, begins, ends]).unique()
    still = torch.searchsorted(cut, starts[~gone], right=True) - 1  # segments that have a picture yet
    touched = torch.isin(torch.searchsorted(borders, cut[:-1], right=True) - 1, segments[gone])
    touched[still] = False
    plain = _inside(cut[:-1][touched], cut[1:][touched], rows.numel())
    return _learning(_cut(_taken_out(batch, gone, counts), cut), placeholders, plain)


def _inside(begins: torch.Tensor, ends: torch.Tensor, positions: int) -> torch.Tensor:
    """bool `[positions]`: whether a position is in one of the ranges, which do not overlap."""
    steps = torch.zeros(positions + 1, dtype=torch.int64)
    steps.index_add_(0, begins, torch.ones_like(begins))
    steps.index_add_(0, ends, -torch.ones_like(ends))
    return steps[:-1].cumsum(0) > 0


def _taken_out(batch: MicroBatch, gone: torch.Tensor, counts: torch.Tensor) -> MicroBatch:
    """The pictures `gone`, bool `[pictures]`, out of rows and pixels; `counts` are each one's rows."""
    rows = batch.row_index
    kept = ~gone
    stays = kept.repeat_interleave(counts)  # of each row
    renumbering = torch.where(stays, stays.cumsum(0) - 1, -1).to(rows.device)
    renumbered = torch.where(rows >= 0, renumbering[rows.clamp(min=0)], -1)
    none_left = torch.where(rows >= 0, MODALITY_NONE, batch.token_modality.to(torch.int32))
    token_modality = torch.where(renumbered >= 0, batch.token_modality, none_left.to(batch.token_modality.dtype))
    sizes = batch.sizes
    return dataclasses.replace(
        batch,
        row_index=renumbered.to(rows.dtype),
        token_modality=token_modality,
        pixels=None if batch.pixels is None else _pixels_of(batch.pixels, sizes, kept),
        features=None if batch.features is None else batch.features[stays.to(batch.features.device)],
        pictures=int(kept.sum()),
        image_rows=int(counts[kept].sum()),
        sizes=None if sizes is None else tuple(size for size, stay in zip(sizes, kept.tolist(), strict=True) if stay),
    )


def _pixels_of(pixels: torch.Tensor, sizes: Sizes | None, kept: torch.Tensor) -> torch.Tensor:
    if sizes is None:
        return pixels[kept.to(pixels.device)]
    parts = pixels.split([3 * height * width for height, width in sizes])
    left = [part for part, stay in zip(parts, kept.tolist(), strict=True) if stay]
    return torch.cat(left) if left else pixels[:0]


def _cut(batch: MicroBatch, borders: torch.Tensor) -> MicroBatch:
    """The same positions in other segments, int64 `[segments + 1]` on the host."""
    lengths = borders.diff()
    position_ids = torch.arange(batch.tokens.size(1)) - borders[:-1].repeat_interleave(lengths)
    return dataclasses.replace(
        batch,
        position_ids=position_ids.unsqueeze(0).to(batch.position_ids),
        cu_seqlens=borders.to(batch.cu_seqlens),
        max_seqlen=int(lengths.max()),
        document_lengths=tuple(lengths.tolist()),
    )


def _learning(batch: MicroBatch, silent: torch.Tensor, plain: torch.Tensor) -> MicroBatch:
    """No loss where `silent`; text, not caption, where `plain`: bool `[positions]` on the host."""
    quiet = silent.to(batch.loss_mask.device).unsqueeze(0)
    here = plain.to(quiet.device).unsqueeze(0)
    label_modality, token_modality = (
        modality.masked_fill(here & (modality == MODALITY_CAPTION), MODALITY_TEXT)
        for modality in (batch.label_modality, batch.token_modality)
    )
    return dataclasses.replace(
        batch,
        loss_mask=batch.loss_mask.masked_fill(quiet, 0.0),
        label_modality=label_modality.masked_fill(quiet, MODALITY_NONE),
        token_modality=token_modality,
    )
