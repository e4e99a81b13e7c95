"""Datasets of made-up lengths and runs over them, for the tests of planning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.data import DataConfig, TokenCounts
from megatron_vlm.config.model import ModelConfig, ProjectorConfig, VisionConfig
from megatron_vlm.config.optimization import ScheduleConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.packing import PackPlanner

TOKENS = TokenCounts(vocab_size=1000, eod_id=0, image_token_id=1, pad_id=2)
CAPACITY, IMAGE_TOKENS = 64, 4
#: four rows a picture at its own resolution of 4 pixels, one at 2
MODEL = ModelConfig(
    vision=VisionConfig(image_size=4, patch_size=1, hidden_size=8, num_attention_heads=1),
    projector=ProjectorConfig(pixel_shuffle=2),
)
#: a number n > 0 is a text of n ids, 0 a picture
Document = Sequence[int]
Sources = Mapping[str, DocumentSource]


def make(folder: Path, name: str, documents: Sequence[Document]) -> DocumentSource:
    folder.mkdir(exist_ok=True)
    with IndexedWriter(folder / name, np.int32, multimodal=True) as writer:
        for document in documents:
            for part in document:
                if part:
                    writer.add_text([5] * part)
                else:
                    writer.add_image(b"not decoded here")
            writer.end_document()
    return DocumentSource(name, IndexedReader(folder / name), TOKENS, IMAGE_TOKENS)


def four_sources(folder: Path) -> dict[str, DocumentSource]:
    """Long and short texts, documents of one picture and of three."""
    rng = np.random.default_rng(0)
    return {
        "text": make(folder, "text", [[int(n)] for n in rng.integers(2, 300, 40)]),
        "code": make(folder, "code", [[int(n)] for n in rng.integers(2, 30, 40)]),
        "captions": make(folder, "captions", [[0, int(n)] for n in rng.integers(2, 12, 60)]),
        "albums": make(folder, "albums", [[0, 0, 0, int(n)] for n in rng.integers(2, 12, 30)]),
    }


def run(
    *stages: StageConfig,
    steps: int = 100,
    batch: int = 4,
    seed: int = 1,
    max_epochs: dict[str, float] | None = None,
    when_exhausted: Any = "stop",
    sequence_length: int = CAPACITY,
    **data: Any,
) -> RunConfig:
    return RunConfig(
        model=MODEL,
        data=DataConfig(sequence_length=sequence_length, **data),
        curriculum=CurriculumConfig(stages, max_epochs or {}, when_exhausted),
        schedule=ScheduleConfig(global_batch_size=batch, train_steps=steps, seed=seed),
    )


def chosen(sources: Sources, *stages: StageConfig) -> dict[str, DocumentSource]:
    """The sources that the stages name."""
    return {name: source for name, source in sources.items() if any(name in stage.sources for stage in stages)}


def all_packs(planner: PackPlanner, steps: int | None = None) -> list[tuple[Span, ...]]:
    packs: list[tuple[Span, ...]] = []
    for number, plan in enumerate(planner.plans()):
        packs += plan.packs
        if number + 1 == steps:
            break
    return packs
