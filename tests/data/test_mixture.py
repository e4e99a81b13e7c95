"""Shares: every prefix of every stage within a pack of its plan, whatever the sources hold, ramps included."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.mixture import Mixture
from megatron_vlm.data.packing import PackPlanner
from megatron_vlm.errors import ConfigError
from megatron_vlm.ops.pack_order import WHOLE_SHARE
from tests.data.planning_cases import CAPACITY, IMAGE_TOKENS, Sources, chosen, four_sources, make, run

MEASURES = ["tokens", "samples", "visual_tokens"]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, DocumentSource]:
    return four_sources(tmp_path / "four")


def worst(sources: Sources, stage: StageConfig, packs: int, **data: Any) -> float:
    """How far a source is from its share at the worst pack, counted from the packs themselves: in packs, or for samples in
    the documents of the pack that holds most."""
    config = run(stage, steps=packs, batch=1, **data)
    given, capacity = [], CAPACITY
    for step in PackPlanner(sources, config).plans():
        (pack,) = step.packs
        row = np.zeros((3, len(sources)))
        for span in pack:
            row[0, span.source] += span.length
            row[1, span.source] += span.pictures * IMAGE_TOKENS
            row[2, span.source] += span.start == 0
        given.append(row)
    tokens, visual, documents = np.array(given).transpose(1, 0, 2)
    names = list(sources)
    found = 0.0
    planned = np.zeros(len(names))
    total = np.zeros(len(names))
    for place in range(packs):
        weights = CurriculumConfig((stage,)).weights(0, place / packs)
        if stage.measure == "samples":
            amount, pack_of = documents, documents.sum(axis=1).max()
            planned += np.array([weights[n] / sum(weights.values()) for n in names]) * documents[place].sum()
        elif stage.measure == "tokens":
            amount, pack_of = tokens, capacity
            planned += np.array([weights[n] / sum(weights.values()) for n in names]) * tokens[place].sum()
        else:
            shows = [source.has_pictures for source in sources.values()]
            amount, pack_of = np.where(shows, visual, tokens), capacity
            rest = tokens[place][~np.array(shows)].sum()
            others = sum(weights[n] for n, s in zip(names, shows, strict=True) if not s)
            planned += [
                weights[n] * tokens[place].sum() if s else weights[n] / others * rest
                for n, s in zip(names, shows, strict=True)
            ]
        total = total + amount[place]
        found = max(found, float(np.abs(total - planned).max()) / pack_of)
    return found


SHARES = [
    {"text": 0.85, "captions": 0.15},
    {"text": 0.02, "captions": 0.2},
    {"text": 0.5, "code": 0.3, "captions": 0.2},
    {"captions": 0.1, "albums": 0.2, "code": 0.3, "text": 0.4},
]


def stage_of(shares: dict[str, float], measure: Any) -> StageConfig:
    if measure == "visual_tokens":  # shares of visual tokens and a rest
        return StageConfig(sources=shares, measure=measure)
    return StageConfig(sources={name: share / sum(shares.values()) for name, share in shares.items()}, measure=measure)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("shares", SHARES, ids=len)
@pytest.mark.parametrize("window_packs", [5, 64])
def test_every_prefix_is_within_a_pack(sources: Sources, measure: Any, shares: dict[str, float], window_packs: int) -> None:
    stage = stage_of(shares, measure)
    found = worst(chosen(sources, stage), stage, 400, window_packs=window_packs)
    assert 0.0 < found <= 1.0


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("ramp", ["linear", "cosine"])
def test_every_prefix_of_a_ramp_is_within_a_pack(sources: Sources, measure: Any, ramp: Any) -> None:
    stage = stage_of({"text": 0.6, "code": 0.25, "captions": 0.15}, measure)
    before = {"text": 0.9, "code": 0.1}
    stage = replace(stage, ramp=ramp, ramp_share=0.7, sources_from=before)
    assert 0.0 < worst(chosen(sources, stage), stage, 300, window_packs=32) <= 1.0


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 3 * CAPACITY), min_size=1, max_size=8), min_size=2, max_size=4),
    pictures=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    weights=st.lists(st.integers(1, 100), min_size=4, max_size=4),
    measure=st.sampled_from(MEASURES),
    window_packs=st.integers(1, 40),
)
def test_n_sources_stay_within_n_minus_1_packs(
    lengths: list[list[int]], pictures: list[int], weights: list[int], measure: Any, window_packs: int
) -> None:
    """Any lengths, documents longer than a pack among them; two sources stay within one pack whatever they hold."""
    with TemporaryDirectory() as folder:
        sources = {}
        for i, texts in enumerate(lengths):
            # the text after a picture stays short enough that the visual share cannot swing with what is cut off
            kept = [min(length, 20) for length in texts] if pictures[i] else [length + 1 for length in texts]
            sources[f"s{i}"] = make(Path(folder), f"s{i}", [[0] * pictures[i] + [length] for length in kept])
        shares = {name: weights[i] / sum(weights[: len(sources)]) for i, name in enumerate(sources)}
        visual = [name for name in sources if sources[name].has_pictures]
        if measure == "visual_tokens":
            assume(0 < len(visual) < len(sources))
            attainable = sum(shares[name] / sources[name].visual_share() for name in visual)
            shares |= {name: shares[name] * min(1.0, 0.6 / attainable) for name in visual}
        stage = StageConfig(sources=shares, measure=measure)
        assert worst(sources, stage, 60, window_packs=window_packs) <= len(sources) - 1


def test_hole_filling_does_not_eat_a_share(tmp_path: Path) -> None:
    """Captions of 40 leave 24 of 64 positions: filled with text each time, text would have 37 % and not its 5 %."""
    sources = {"text": make(tmp_path, "text", [[200]] * 10), "captions": make(tmp_path, "captions", [[0, 37]] * 10)}
    for measure in ("tokens", "samples"):
        stage = stage_of({"text": 0.05, "captions": 0.95}, measure)
        assert worst(sources, stage, 300) <= 1.0
        (*_, last) = PackPlanner(sources, run(stage)).plans()
        assert last.report.padded > 0, "the price, counted"


def test_the_plan_is_carried_over_a_border(sources: Sources) -> None:
    """What a source is behind at the end of a stage is made up for in the next."""
    stages = [
        StageConfig(name=f"s{i}", until_steps=10 * (i + 1), sources={"text": 0.8 - 0.05 * i, "captions": 0.2 + 0.05 * i})
        for i in range(8)
    ]
    found = chosen(sources, *stages)
    planned = 0.0
    for step in PackPlanner(found, run(*stages, steps=80, batch=1)).plans():
        planned += stages[step.shape.stage].sources["captions"] * sum(s.length for s in step.packs[0])
        assert abs(step.report.source_tokens["captions"] - planned) <= CAPACITY
        assert step.report.planned_tokens["captions"] == pytest.approx(planned, abs=0.01)


def test_planned_and_achieved_visual_shares_agree(sources: Sources) -> None:
    for measure in MEASURES:
        stage = stage_of({"text": 0.7, "albums": 0.2, "captions": 0.1}, measure)
        (*_, last) = PackPlanner(chosen(sources, stage), run(stage)).plans()
        report = last.report
        assert report.achieved_visual_share == pytest.approx(report.planned_visual_share, rel=0.05)
        total = sum(report.source_tokens.values())
        assert report.achieved_visual_share == sum(report.source_visual.values()) / total


# -- one stage's shares ---------------------------------------------------------------------------------------------------


def mixture(stage: StageConfig, sources: Sources, **options: Any) -> Mixture:
    return Mixture(CurriculumConfig((stage,)), 0, chosen(sources, stage), IMAGE_TOKENS, **options)


def test_planned_visual_share_of_each_measure(tmp_path: Path) -> None:
    # 8 positions, 4 of them a picture's; 24 positions of text
    sources = {"text": make(tmp_path, "text", [[25]] * 3), "captions": make(tmp_path, "captions", [[0, 5]] * 3)}
    assert sources["captions"].visual_share() == 0.5

    def planned(measure: Any) -> float:
        stage = StageConfig(sources={"text": 0.8, "captions": 0.2}, measure=measure)
        return mixture(stage, sources).planned_visual_share(0.5)

    assert planned("tokens") == pytest.approx(0.2 * 0.5)
    assert planned("visual_tokens") == pytest.approx(0.2)
    assert planned("samples") == pytest.approx(0.2 * 4 / (0.2 * 8 + 0.8 * 24))


def test_shares_are_whole_numbers_that_sum_to_one(sources: Sources) -> None:
    found = mixture(StageConfig(sources={"text": 3.0, "captions": 1.0, "code": 0.0, "albums": 1 / 3}), sources)
    assert found.active == ["text", "captions", "albums"]
    shares = found.shares(0.0)
    assert sum(shares.values()) == WHOLE_SHARE
    assert shares["captions"] / WHOLE_SHARE == pytest.approx(1 / (4 + 1 / 3), abs=1e-9)


def test_a_ramp_goes_from_the_stage_before(sources: Sources) -> None:
    stages = (
        StageConfig(name="a", until=0.5, sources={"text": 1.0}),
        StageConfig(name="b", sources={"text": 0.5, "captions": 0.5}, ramp="linear", ramp_share=0.5),
    )
    found = Mixture(CurriculumConfig(stages), 1, chosen(sources, *stages), IMAGE_TOKENS)
    table = found.shares_at(np.linspace(0, 1, 5))[:, found.names.index("captions")] / WHOLE_SHARE
    assert table.tolist() == pytest.approx([0, 0.25, 0.5, 0.5, 0.5])


def test_an_unreachable_visual_share_is_refused_with_the_attainable_one(sources: Sources) -> None:
    def made(text: float, captions: float) -> Mixture:
        stage = StageConfig(name="im", sources={"text": text, "captions": captions}, measure="visual_tokens")
        return mixture(stage, sources)

    most = sources["captions"].visual_share()
    with pytest.raises(ConfigError, match=rf"stage 'im': a visual-token share of 0\.9 .*; at most {most:.3f} can"):
        made(0.1, 0.9)
    attainable = float(f"{most:.3f}") - 0.001
    assert made(1 - attainable, attainable).planned_visual_share(0.0) == attainable


def test_a_ramp_is_refused_where_its_end_cannot_be_reached(sources: Sources) -> None:
    stage = StageConfig(
        sources={"text": 0.1, "captions": 0.9}, sources_from={"text": 1.0}, measure="visual_tokens", ramp="linear"
    )
    with pytest.raises(ConfigError, match="at most"):
        mixture(stage, sources)


def test_two_picture_sources_are_reached_together_or_refused(sources: Sources) -> None:
    captions, albums = sources["captions"].visual_share(), sources["albums"].visual_share()

    def made(part: float) -> Mixture:
        shares = {"captions": captions * part, "albums": albums * part, "text": 0.1}
        return mixture(StageConfig(sources=shares, measure="visual_tokens"), sources)

    with pytest.raises(ConfigError, match="at most"):
        made(0.6)
    assert made(0.4).planned_visual_share(0.0) == pytest.approx(0.4 * (captions + albums))


def test_captions_alone_have_exactly_their_own_share(sources: Sources) -> None:
    with pytest.raises(ConfigError, match=r"exactly, with no other source to fill the rest, 0\.\d{3} can"):
        mixture(StageConfig(sources={"captions": 0.1}, measure="visual_tokens"), sources)
    share = sources["captions"].visual_share()
    stage = StageConfig(sources={"captions": share}, measure="visual_tokens")
    assert mixture(stage, sources).planned_visual_share(0.0) == share


def test_an_exhausted_sources_visual_share_goes_to_the_others_with_pictures(sources: Sources) -> None:
    stage = StageConfig(sources={"captions": 0.1, "albums": 0.1, "text": 0.8}, measure="visual_tokens")
    assert mixture(stage, sources, exhausted=["albums"]).planned_visual_share(0.0) == pytest.approx(0.2)
    most = sources["captions"].visual_share()
    stage = StageConfig(sources={"captions": 0.1, "albums": 0.6, "text": 0.1}, measure="visual_tokens")
    assert mixture(stage, sources, exhausted=["albums"]).planned_visual_share(0.0) == pytest.approx(most), (
        "as far as it goes"
    )


def test_weights_of_a_window_follow_the_ramp(sources: Sources) -> None:
    """Over the whole of a linear ramp from nothing a source gets half of its last share."""
    stage = StageConfig(sources={"text": 0.5, "captions": 0.5}, sources_from={"text": 1.0}, ramp="linear")
    tokens = [step.report.source_tokens for step in PackPlanner(chosen(sources, stage), run(stage)).plans()]
    shares = [count["captions"] / sum(count.values()) for count in tokens]
    assert shares[-1] == pytest.approx(0.25, abs=0.01)
    assert list(accumulate(shares[5:], max)) == pytest.approx(shares[5:], abs=0.01), "it rises"
