"""The realised mixture is within a pack of the planned one at every prefix, in each measure; what cannot be is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_vlm.config.curriculum import StageConfig
from megatron_vlm.config.data import DataConfig, TokenCounts
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.mixture import Mixture
from megatron_vlm.data.packing import PackPlanner
from megatron_vlm.errors import ConfigError

TOKENS = TokenCounts(vocab_size=100, eod_id=0, image_token_id=1, pad_id=2)
CAPACITY, IMAGE_TOKENS = 64, 4


def make(folder: Path, name: str, text_lengths: Sequence[int], pictures: int = 0) -> DocumentSource:
    """Documents of `pictures` pictures and then a text, a document for each length."""
    with IndexedWriter(folder / name, np.int32, multimodal=True) as writer:
        for length in text_lengths:
            for _ in range(pictures):
                writer.add_image(b"x")
            writer.add_text([5] * length)
            writer.end_document()
    return DocumentSource(name, IndexedReader(folder / name), TOKENS, IMAGE_TOKENS)


def deviations(plan: PackPlanner, stage: StageConfig) -> dict[str, float]:
    """How far each source is ahead (+) or behind (-) of its planned share, in packs, in the stage's own measure."""
    accounts = plan.mixture.accounts
    total = sum(account.tokens for account in accounts.values())
    if stage.measure == "tokens":
        return {name: (accounts[name].tokens - share * total) / CAPACITY for name, share in stage.sources.items()}
    if stage.measure == "visual_tokens":
        visual = {name: share for name, share in stage.sources.items() if plan.sources[name].has_pictures}
        return {name: (accounts[name].visual - share * total) / CAPACITY for name, share in visual.items()}
    documents = sum(account.documents for account in accounts.values())
    mean = sum(share * plan.sources[name].mean_positions for name, share in stage.sources.items())
    pack = max(1.0, CAPACITY / mean)  # the documents that a pack holds on average
    return {name: (accounts[name].documents - share * documents) / pack for name, share in stage.sources.items()}


def worst(sources: dict[str, DocumentSource], stage: StageConfig, packs: int, **data: Any) -> tuple[float, PackPlanner]:
    plan = PackPlanner(sources, [stage], DataConfig(sequence_length=CAPACITY, **data), 1)
    found = 0.0
    for _ in range(packs):
        assert plan.next_pack()
        found = max(found, *(abs(value) for value in deviations(plan, stage).values()))
    return found, plan


MEASURES = ["tokens", "samples", "visual_tokens"]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, DocumentSource]:
    rng = np.random.default_rng(0)
    return {
        "text": make(tmp_path, "text", rng.integers(2, 300, 40).tolist()),
        "code": make(tmp_path, "code", rng.integers(2, 30, 40).tolist()),
        "captions": make(tmp_path, "captions", rng.integers(2, 12, 60).tolist(), pictures=1),
        "albums": make(tmp_path, "albums", rng.integers(2, 12, 30).tolist(), pictures=3),
    }


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    "shares",
    [
        {"text": 0.85, "captions": 0.15},
        {"text": 0.02, "captions": 0.2},
        {"text": 0.5, "code": 0.3, "captions": 0.2},
        {"captions": 0.1, "albums": 0.2, "code": 0.3, "text": 0.4},
    ],
    ids=len,
)
def test_every_prefix_is_within_a_pack(sources: dict[str, DocumentSource], measure: Any, shares: dict[str, float]) -> None:
    total = 1.0 if measure == "visual_tokens" else sum(shares.values())
    stage = StageConfig(sources={name: share / total for name, share in shares.items()}, measure=measure)
    # few wait, for a plan in samples counts on documents of mean length, and those that wait are the long ones
    found, plan = worst(sources, stage, 400, lookahead=4)
    assert 0.0 < found <= 1.0
    assert plan.mixture.achieved_visual_share == pytest.approx(plan.mixture.planned_visual_share, rel=0.05)


def test_sources_without_pictures_share_the_rest_by_their_weights(sources: dict[str, DocumentSource]) -> None:
    stage = StageConfig(sources={"captions": 0.1, "text": 0.6, "code": 0.2}, measure="visual_tokens")
    plan = PackPlanner(sources, [stage], DataConfig(sequence_length=CAPACITY), 1)
    for _ in range(400):
        plan.next_pack()
        text, code = (plan.mixture.accounts[name].tokens for name in ("text", "code"))
        assert abs(code - (text + code) / 4) <= CAPACITY


@settings(max_examples=40)
@given(
    lengths=st.lists(st.lists(st.integers(1, 3 * CAPACITY), min_size=1, max_size=8), min_size=2, max_size=4),
    pictures=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    weights=st.lists(st.integers(1, 100), min_size=4, max_size=4),
    measure=st.sampled_from(MEASURES),
)
def test_n_sources_stay_within_n_minus_1_packs(
    lengths: list[list[int]], pictures: list[int], weights: list[int], measure: Any
) -> None:
    """Any lengths, documents longer than a pack among them; two sources stay within one pack whatever they hold."""
    with TemporaryDirectory() as folder:
        sources = {}
        for i, texts in enumerate(lengths):
            # the text after a picture stays short enough that the visual share cannot swing with what is cut off
            kept = [min(length, 20) for length in texts] if pictures[i] else [length + 1 for length in texts]
            sources[f"s{i}"] = make(Path(folder), f"s{i}", kept, pictures[i])
        shares = {name: weights[i] / sum(weights[: len(sources)]) for i, name in enumerate(sources)}
        visual = [name for name in sources if sources[name].has_pictures]
        if measure == "visual_tokens":
            assume(0 < len(visual) < len(sources))
            attainable = sum(shares[name] / sources[name].visual_share for name in visual)
            shares |= {name: shares[name] * min(1.0, 0.6 / attainable) for name in visual}
        found, _ = worst(sources, StageConfig(sources=shares, measure=measure), 60)
        assert found <= len(sources) - 1


def test_hole_filling_does_not_eat_a_share(tmp_path: Path) -> None:
    """Captions of 40 leave 24 of 64 positions: filled with text each time, text would have 37 % and not its 5 %."""
    sources = {
        "text": make(tmp_path, "text", [200] * 10),
        "captions": make(tmp_path, "captions", [37] * 10, pictures=1),
    }
    for measure in ("tokens", "samples"):
        stage = StageConfig(sources={"text": 0.05, "captions": 0.95}, measure=measure)  # type: ignore[arg-type]
        found, plan = worst(sources, stage, 300)
        assert found <= 1.0
        assert plan.fill.padded > 0, "the price, counted"


def test_short_documents_do_not_eat_the_share_of_samples(tmp_path: Path) -> None:
    """One-position documents fit every hole; counted in samples they must not outgrow their weight all the same."""
    sources = {"text": make(tmp_path, "text", [60, 61, 62]), "short": make(tmp_path, "short", [2] * 5)}
    found, _ = worst(sources, StageConfig(sources={"text": 0.9, "short": 0.1}, measure="samples"), 300)
    assert found <= 1.0


def test_planned_visual_share_of_each_measure(tmp_path: Path) -> None:
    # 8 positions, 4 of them a picture's; 24 positions of text
    sources = {"text": make(tmp_path, "text", [25] * 3), "captions": make(tmp_path, "captions", [5] * 3, pictures=1)}
    assert sources["captions"].visual_share == 0.5

    def planned(measure: Any) -> float:
        return Mixture(StageConfig(sources={"text": 0.8, "captions": 0.2}, measure=measure), sources).planned_visual_share

    assert planned("tokens") == pytest.approx(0.2 * 0.5)
    assert planned("visual_tokens") == pytest.approx(0.2)
    assert planned("samples") == pytest.approx(0.2 * 4 / (0.2 * 8 + 0.8 * 24))


def test_weights_are_relative_and_zero_leaves_a_source_out(sources: dict[str, DocumentSource]) -> None:
    mixture = Mixture(StageConfig(sources={"text": 3.0, "captions": 1.0, "code": 0.0}), sources)
    assert list(mixture.accounts) == ["text", "captions"]
    assert mixture.planned_visual_share == pytest.approx(0.25 * sources["captions"].visual_share)
    assert mixture.achieved_visual_share == 0.0


def test_the_first_pack_begins_with_the_first_source(sources: dict[str, DocumentSource]) -> None:
    assert Mixture(StageConfig(sources={"code": 0.1, "text": 0.9}), sources).candidates(64, 64)[0] == "code"


def test_the_neediest_comes_first(sources: dict[str, DocumentSource]) -> None:
    mixture = Mixture(StageConfig(sources={"text": 0.5, "captions": 0.5}), sources)
    mixture.record("text", 40, 0, True)
    assert mixture.candidates(24, 64) == ["captions", "text"]
    mixture.record("text", 64, 0, False)
    assert mixture.candidates(24, 64) == ["captions"], "52 ahead: with 24 more it would be over a pack"
    mixture.record("captions", 100, 30, True)
    assert mixture.candidates(24, 64) == ["captions", "text"]


def test_an_unreachable_visual_share_is_refused_with_the_attainable_one(sources: dict[str, DocumentSource]) -> None:
    def mixture(text: float, captions: float) -> Mixture:
        return Mixture(
            StageConfig(name="im", sources={"text": text, "captions": captions}, measure="visual_tokens"), sources
        )

    most = sources["captions"].visual_share
    with pytest.raises(ConfigError, match=rf"stage 'im': a visual-token share of 0\.9 .*; at most {most:.3f} can"):
        mixture(0.1, 0.9)
    attainable = float(f"{most:.3f}") - 0.001
    assert mixture(1 - attainable, attainable).planned_visual_share == attainable


def test_two_picture_sources_are_reached_together_or_refused(sources: dict[str, DocumentSource]) -> None:
    captions, albums = sources["captions"].visual_share, sources["albums"].visual_share
    with pytest.raises(ConfigError, match="at most"):
        Mixture(
            StageConfig(sources={"captions": captions * 0.6, "albums": albums * 0.6, "text": 0.1}, measure="visual_tokens"),
            sources,
        )
    both = {"captions": captions * 0.4, "albums": albums * 0.4, "text": 0.1}
    assert Mixture(StageConfig(sources=both, measure="visual_tokens"), sources).planned_visual_share == pytest.approx(
        0.4 * (captions + albums)
    )


def test_captions_alone_have_exactly_their_own_share(sources: dict[str, DocumentSource]) -> None:
    with pytest.raises(ConfigError, match=r"exactly, with no other source to fill the rest, 0\.\d{3} can"):
        Mixture(StageConfig(sources={"captions": 0.1}, measure="visual_tokens"), sources)
    share = sources["captions"].visual_share
    stage = StageConfig(sources={"captions": share}, measure="visual_tokens")
    assert Mixture(stage, sources).planned_visual_share == share
