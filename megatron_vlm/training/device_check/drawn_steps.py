"""A few steps of the `tiny` preset on drawn data: the whole path of a step, without a dataset or a tokenizer.

Model, data-parallel wrapper, optimiser and schedule are those of a run (`training.engine`, `training.step`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.micro_batch import MicroBatch, make_micro_batch
from megatron_vlm.models.specs import choose_layer_spec
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT, Segment
from megatron_vlm.parallel import topology
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.training.engine import Engine
from megatron_vlm.training.step import train_step

TOKENS = TokenCounts(vocab_size=300, eod_id=0, image_token_id=1, pad_id=2)
#: everything is trained, and there are pictures from the first step on
CURRICULUM = "[{name: both, sources: {text: 0.5, captions: 0.5}, measure: samples}]"
#: words after a picture
CAPTION = 32


@dataclass(frozen=True)
class DrawnSteps:
    """Of each step the loss, nats a token, the gradient's norm and the seconds; the most bytes that this rank took of its
    device, 0 on the CPU; how often CUDA graphs were captured."""

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    seconds: tuple[float, ...]
    memory: int
    layer_spec: str
    captures: int = 0


def configuration(preset: str, steps: int, overrides: Sequence[str] = ()) -> RunConfig:
    """A preset that reads no data and trains all of the model. Raises ConfigError for overrides that it does not know."""
    base = ["--schedule.train_steps", str(steps), "--schedule.train_tokens", "null", "--schedule.warmup_steps", "0"]
    return load_config(preset=preset, overrides=[*base, "--curriculum.stages", CURRICULUM, *overrides])


def drawn_lengths(shape: StepShape) -> tuple[tuple[int, bool], ...]:
    """(positions, whether it begins with a picture) of each document of a pack: a captioned picture where there is room for
    one, and texts of a quarter of a pack."""
    documents, room = [], shape.sequence_length
    if shape.image_tokens + CAPTION <= room:
        documents.append((shape.image_tokens + CAPTION, True))
        room -= shape.image_tokens + CAPTION
    while room:
        length = min(room, max(1, shape.sequence_length // 4))
        documents.append((length, False))
        room -= length
    return tuple(documents)


def drawn_batches(shape: StepShape, tokens: TokenCounts, place: Topology, seed: int = 0) -> list[MicroBatch]:
    """This rank's micro-batches of a global batch of drawn words and pictures: the same global batch in every layout."""
    rng = np.random.default_rng(seed)
    packs: list[tuple[list[Segment], list[np.ndarray]]] = []
    for _ in range(shape.global_batch_size):
        segments: list[Segment] = []
        pictures: list[np.ndarray] = []
        for length, pictured in drawn_lengths(shape):
            ids = rng.integers(3, tokens.vocab_size, length + 1).astype(np.int32)
            if pictured:
                ids[: shape.image_tokens] = tokens.image_token_id
                pictures.append(rng.integers(0, 256, (shape.image_size, shape.image_size, 3)).astype(np.uint8))
            segments.append(Segment(ids, MODALITY_CAPTION if pictured else MODALITY_TEXT))
        packs.append((segments, pictures))
    each = shape.global_batch_size // place.data_size
    mine = packs[place.data_rank * each : (place.data_rank + 1) * each]
    batches = []
    for first in range(0, each, shape.micro_batch_size):
        part = mine[first : first + shape.micro_batch_size]
        seen = [picture for _, found in part for picture in found] if place.on_first_stage else None
        batches.append(make_micro_batch([found for found, _ in part], seen, tokens, shape).to(place.device))
    return batches


def drawn_steps(config: RunConfig, steps: int, learning_rate: float = 2e-3, tokens: TokenCounts = TOKENS) -> DrawnSteps:
    """`steps` steps on one and the same drawn batch, on every rank of the layout (one, without torchrun).

    Joins the process groups and leaves them again. For a process of its own, or one whose other work is done: without a GPU
    megatron-core's host platform stays installed.

    Raises:
        UserError: what this machine cannot run.
    """
    place = topology.initialize(config.parallel, config.schedule.seed)
    try:
        on_gpu = place.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(place.device)
        engine = Engine(config, tokens, place)
        engine.enter_stage(0)
        batches = drawn_batches(config.shape_of(0), tokens, place)
        results, seconds = [], []
        for _ in range(steps):
            began = time.perf_counter()
            results.append(train_step(engine, batches, place, learning_rate))  # reads the loss, so it waits for the device
            seconds.append(time.perf_counter() - began)
        return DrawnSteps(
            tuple(result.loss for result in results),
            tuple(result.grad_norm for result in results),
            tuple(seconds),
            torch.cuda.max_memory_allocated(place.device) if on_gpu else 0,
            choose_layer_spec(config, place.device.type),
            engine.graphs.captures,
        )
    finally:
        topology.shutdown()
