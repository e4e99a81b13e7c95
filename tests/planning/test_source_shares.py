"""Shares against what each measure says that its weights count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from megatron_vlm.planning.source_shares import SourceShape, shares_of

TEXT, CODE = SourceShape(7000.0, 0.0), SourceShape(500.0, 0.0)
CAPTIONS, PAGES = SourceShape(8.0, 0.5), SourceShape(300.0, 0.25)
SHAPES = {"text": TEXT, "code": CODE, "captions": CAPTIONS, "pages": PAGES}
WEIGHTS = st.dictionaries(st.sampled_from(sorted(SHAPES)), st.floats(0.001, 1), min_size=1)


@given(weights=WEIGHTS, measure=st.sampled_from(["tokens", "samples", "visual_tokens"]))
def test_shares_are_of_everything_and_pictures_follow(weights: dict[str, float], measure: Any) -> None:
    shares = shares_of(weights, measure, SHAPES)
    assert sum(shares.sources.values()) == pytest.approx(1)
    assert min(shares.sources.values()) >= 0
    assert shares.visual == pytest.approx(sum(share * SHAPES[n].visual_share for n, share in shares.sources.items()))
    assert shares.known


@given(weights=WEIGHTS)
def test_tokens_are_positions(weights: dict[str, float]) -> None:
    shares = shares_of(weights, "tokens", SHAPES).sources
    for name, weight in weights.items():
        assert shares[name] * sum(weights.values()) == pytest.approx(weight)


@given(weights=WEIGHTS)
def test_samples_are_documents(weights: dict[str, float]) -> None:
    documents = {n: share / SHAPES[n].mean_positions for n, share in shares_of(weights, "samples", SHAPES).sources.items()}
    for name, weight in weights.items():
        assert documents[name] / sum(documents.values()) == pytest.approx(weight / sum(weights.values()))


@given(weights=WEIGHTS)
def test_visual_tokens_are_shares_of_all_positions(weights: dict[str, float]) -> None:
    pictured = {name: weight for name, weight in weights.items() if SHAPES[name].visual_share > 0}
    rest = {name: weight for name, weight in weights.items() if name not in pictured}
    assume(rest and sum(weight / SHAPES[n].visual_share for n, weight in pictured.items()) <= 1)
    shares = shares_of(weights, "visual_tokens", SHAPES)
    assert shares.most_visual is None
    for name, weight in pictured.items():
        assert shares.sources[name] * SHAPES[name].visual_share == pytest.approx(weight)
    for name, weight in rest.items():
        assert shares.sources[name] * sum(rest.values()) == pytest.approx(
            weight * (1 - sum(shares.sources[p] for p in pictured))
        )


def test_what_cannot_be_reached_says_what_can() -> None:
    too_much = shares_of({"text": 0.4, "captions": 0.6}, "visual_tokens", SHAPES)
    assert (too_much.most_visual, too_much.sources) == (0.5, {"captions": 1.0})
    assert shares_of({"text": 0.5, "captions": 0.5}, "visual_tokens", SHAPES).most_visual is None
    alone = shares_of({"captions": 0.2}, "visual_tokens", SHAPES)
    assert (alone.most_visual, alone.visual, alone.sources) == (0.5, 0.5, {"captions": 1.0})


def test_weights_of_zero_count_for_nothing() -> None:
    shares = shares_of({"text": 1.0, "captions": 0.0}, "visual_tokens", SHAPES)
    assert (shares.sources, shares.visual) == ({"text": 1.0}, 0.0)


def test_sources_that_were_not_read() -> None:
    tokens = shares_of({"text": 3.0, "gone": 1.0}, "tokens", SHAPES)
    assert (tokens.sources, tokens.visual, tokens.known) == ({"text": 0.75, "gone": 0.25}, None, True)
    visual = shares_of({"text": 0.8, "gone": 0.2}, "visual_tokens", SHAPES)
    assert (visual.sources, visual.visual, visual.known) == ({"text": 0.8, "gone": 0.2}, None, False)
