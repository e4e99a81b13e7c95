"""Micro-batches that are copied on a stream of their own are whole where they are used."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.micro_batch import MicroBatch, make_micro_batch
from megatron_vlm.ops.assemble import MODALITY_CAPTION, Segment
from megatron_vlm.training.device_copies import DeviceCopies
from tests.gpu.needed import ON_A_GPU

pytestmark = ON_A_GPU
TOKENS = TokenCounts(vocab_size=1000, eod_id=0, image_token_id=1, pad_id=2)


def micro_batch(seed: int) -> MicroBatch:
    """In pinned memory: 64 pictures of 256 pixels, 12 MB."""
    rng = np.random.default_rng(seed)
    ids = np.concatenate([np.ones(64, np.int32), rng.integers(3, 1000, 64).astype(np.int32)])
    pixels = list(rng.integers(0, 256, (64, 256, 256, 3), np.uint8))
    batch = make_micro_batch([[Segment(ids, MODALITY_CAPTION)]], pixels, TOKENS, StepShape(0, 128, 1, 1, 256, 1, 1))
    pinned = {name: value.pin_memory() for name, value in batch.__dict__.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(batch, **pinned)


def test_copies_are_waited_for() -> None:
    device = torch.device("cuda", 0)
    copies, ours = DeviceCopies(device), [micro_batch(seed) for seed in range(4)]
    for _ in range(10):  # memory of the round before is used again
        load = torch.randn(4096, 4096, device=device)
        there = copies.begin(ours)
        for batch, mine in zip(there, ours, strict=True):
            load = load @ load / 64  # the device computes while the next is copied
            batch.arrive()
            for found, wanted in zip(batch.tensors(), mine.tensors(), strict=True):
                assert torch.equal(found.cpu(), wanted)
