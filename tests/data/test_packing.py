"""Packs: within capacity, nothing lost or repeated, the planned mixture at every prefix, exact continuation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_vlm.config.curriculum import StageConfig
from megatron_vlm.config.data import DataConfig, TokenCounts
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.order import epoch_order
from megatron_vlm.data.packing import PackPlanner
from megatron_vlm.errors import ConfigError

TOKENS = TokenCounts(vocab_size=1000, eod_id=0, image_token_id=1, pad_id=2)
CAPACITY, IMAGE_TOKENS = 64, 4


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, DocumentSource]:
    rng = np.random.default_rng(0)
    with IndexedWriter(tmp_path / "text", np.uint16) as writer:
        for _ in range(40):
            writer.add_text(rng.integers(3, 1000, rng.integers(2, 300)).tolist())
            writer.end_document()
    with IndexedWriter(tmp_path / "captions", np.int32, multimodal=True) as writer:
        for _ in range(60):
            writer.add_image(b"not decoded here")
            writer.add_text(rng.integers(3, 1000, rng.integers(2, 12)).tolist())
            writer.end_document()
    return {
        name: DocumentSource(name, IndexedReader(tmp_path / name), TOKENS, IMAGE_TOKENS) for name in ("text", "captions")
    }


def planner(sources: dict[str, DocumentSource], stage: StageConfig, seed: int = 1) -> PackPlanner:
    return PackPlanner(sources, [stage], DataConfig(sequence_length=CAPACITY), seed)


def test_every_position_drawn_is_trained_once_or_still_waits(sources: dict[str, DocumentSource]) -> None:
    plan = planner(sources, StageConfig(sources={"text": 1.0}))
    text, stream = sources["text"], plan.streams["text"]
    trained = {int(d): np.zeros(text.positions[d], int) for d in text.documents}
    for span in (span for _ in range(200) for span in plan.next_pack()):
        trained[span.document][span.start : span.start + span.length] += 1
    drawn = {int(d): stream.epoch for d in text.documents}
    for document in epoch_order(text.documents, 1, "text", stream.epoch)[: stream.next]:
        drawn[int(document)] += 1
    for document, start in stream.queue:
        trained[document][start:] += 1  # waits, and will be
    assert stream.epoch >= 2
    assert all((counts == drawn[document]).all() for document, counts in trained.items())


@pytest.mark.parametrize(("measure", "share"), [("tokens", 0.5), ("samples", 0.5), ("visual_tokens", 0.2)])
def test_the_mixture_is_within_a_pack_of_the_plan(sources: dict[str, DocumentSource], measure: str, share: float) -> None:
    stage = StageConfig(sources={"text": 1 - share, "captions": share}, measure=measure)  # type: ignore[arg-type]
    plan = planner(sources, stage)
    for _ in range(300):
        pack = plan.next_pack()
        assert 0 < sum(span.length for span in pack) <= CAPACITY
        accounts = plan.mixture.accounts
        total = sum(a.tokens for a in accounts.values())
        if measure == "tokens":
            assert abs(accounts["captions"].tokens - share * total) <= CAPACITY
        elif measure == "visual_tokens":
            assert abs(accounts["captions"].visual - share * total) <= CAPACITY
    assert plan.mixture.achieved_visual_share == pytest.approx(plan.mixture.planned_visual_share, rel=0.1)
    assert plan.fill.padded / (plan.fill.filled + plan.fill.padded) < 0.05


def test_pictures_are_never_cut(sources: dict[str, DocumentSource]) -> None:
    plan = planner(sources, StageConfig(sources={"text": 0.5, "captions": 0.5}))
    for _ in range(100):
        for span in plan.next_pack():
            if span.source == 1:
                assert span.start == 0
                ids, pictures = sources["captions"].ids(span.document, span.start, span.length + 1)
                assert (ids[:-1] == TOKENS.image_token_id).sum() == IMAGE_TOKENS * len(pictures) == IMAGE_TOKENS


def test_state_goes_on_exactly(sources: dict[str, DocumentSource]) -> None:
    stage = StageConfig(sources={"text": 0.7, "captions": 0.3})
    plan, other = planner(sources, stage), planner(sources, stage)
    plan.next_packs(37)
    other.load(json.loads(json.dumps(plan.state())))
    assert other.next_packs(50) == plan.next_packs(50)
    assert planner(sources, stage, seed=2).next_packs(5) != planner(sources, stage).next_packs(5)


def test_a_share_that_captions_cannot_reach_is_refused(sources: dict[str, DocumentSource]) -> None:
    with pytest.raises(ConfigError, match="at most"):
        planner(sources, StageConfig(sources={"text": 0.05, "captions": 0.95}, measure="visual_tokens"))
