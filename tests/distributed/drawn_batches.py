"""Global batches of any shape, drawn and not read: for steps that need no dataset."""

from __future__ import annotations

import numpy as np

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.micro_batch import MicroBatch, make_micro_batch
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT, Segment
from megatron_vlm.parallel.topology import Topology

TOKENS = TokenCounts(vocab_size=300, eod_id=0, image_token_id=1, pad_id=2)


def packs(shape: StepShape, step: int) -> list[tuple[list[Segment], list[np.ndarray]]]:
    """A global batch: each pack's segments and pictures; some packs without a picture, some with two."""
    rng = np.random.default_rng(100 + step)
    made = []
    for number in range(shape.global_batch_size):
        segments, pictures, room = [], [], shape.sequence_length
        for picture in (number % 2 == 0, number % 4 == 0, False):
            length = min(room, int(rng.integers(24, 40)))
            ids = rng.integers(3, TOKENS.vocab_size, length + 1).astype(np.int32)
            if picture:
                ids[: shape.image_tokens] = TOKENS.image_token_id
                pictures.append(rng.integers(0, 256, (shape.image_size, shape.image_size, 3)).astype(np.uint8))
            segments.append(Segment(ids, MODALITY_CAPTION if picture else MODALITY_TEXT))
            room -= length
        made.append((segments, pictures))
    return made


def micro_batches(shape: StepShape, step: int, top: Topology) -> list[MicroBatch]:
    """This rank's part of a global batch, dealt in order."""
    whole = packs(shape, step)
    each = shape.global_batch_size // top.data_size
    mine = whole[top.data_rank * each : (top.data_rank + 1) * each]
    batches = []
    for first in range(0, each, shape.micro_batch_size):
        part = mine[first : first + shape.micro_batch_size]
        pictures = [picture for _, found in part for picture in found] if top.on_first_stage else None
        segments = [found for found, _ in part]
        batches.append(make_micro_batch(segments, pictures, TOKENS, shape))
    return batches
