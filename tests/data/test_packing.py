"""Packs: within capacity, nothing lost or repeated, pictures whole, exact continuation from any step."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_vlm.config.curriculum import StageConfig
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.packing import PackPlanner
from megatron_vlm.errors import ConfigError, DataError
from tests.data.planning_cases import (
    CAPACITY,
    IMAGE_TOKENS,
    TOKENS,
    Document,
    Sources,
    all_packs,
    chosen,
    four_sources,
    make,
    run,
)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, DocumentSource]:
    found = four_sources(tmp_path / "four")
    return {name: found[name] for name in ("text", "captions")}


HALVES = StageConfig(sources={"text": 0.5, "captions": 0.5})
TEXT = StageConfig(sources={"text": 1.0})


def check_every_position_once(planner: PackPlanner, name: str, spans: Sequence[Span]) -> None:
    """What was trained and what was drawn and waits are the documents in their order, each position as often as it came."""
    source, upcoming = planner.sources[name], planner.upcoming[name]
    passed, offset, _ = planner.standing_after(name)
    count = source.reader.document_count
    known = source.lengths(np.arange(count))
    times = np.bincount(
        np.concatenate(
            [upcoming.order.take(epoch, 0, count) for epoch in range(passed // count)] or [np.zeros(0, np.int64)]
        ),
        minlength=count,
    )
    times[upcoming.order.take(passed // count, 0, passed % count)] += 1
    trained = {d: np.zeros(max(0, int(n)), int) for d, n in enumerate(known.positions)}
    waiting = planner.left_over()[name]
    for document, start, length in [*((s.document, s.start, s.length) for s in spans), *waiting]:
        trained[document][start : start + length] += 1
    next_one = int(upcoming.order.take(passed // count, passed % count, passed % count + 1)[0])
    for document, counts in trained.items():
        expected = np.full(len(counts), times[document])
        if document == next_one:
            expected[:offset] += 1
        if known.pictures[document] and len(counts) > CAPACITY:
            # left out whole where its pictures are more than a pack, else all behind a pack's positions
            expected[0 if known.picture_end[document] > CAPACITY else CAPACITY :] = 0
        assert counts.tolist() == expected.tolist(), f"document {document} of {name}"


DOCUMENTS = st.lists(
    st.lists(st.one_of(st.just(0), st.integers(1, 40), st.integers(1, 3 * CAPACITY)), min_size=1, max_size=4),
    min_size=1,
    max_size=10,
)


def fits(document: Document) -> bool:
    """Two ids or more, and the last picture ends inside a pack."""
    sizes = [part or IMAGE_TOKENS for part in document]
    last = max((place + 1 for place, part in enumerate(document) if not part), default=0)
    return (sum(sizes) >= 2 or last == len(sizes)) and sum(sizes[:last]) <= CAPACITY


@settings(max_examples=60, deadline=None)
@given(
    first=DOCUMENTS,
    second=DOCUMENTS,
    share=st.floats(0.05, 0.95),
    measure=st.sampled_from(["tokens", "samples"]),
    fill_holes=st.booleans(),
    min_piece=st.integers(1, 20),
    window_packs=st.integers(1, 30),
    batch=st.integers(1, 5),
    stop=st.integers(0, 9),
)
def test_whatever_the_documents_are(
    first: list[Document],
    second: list[Document],
    share: float,
    measure: Any,
    fill_holes: bool,
    min_piece: int,
    window_packs: int,
    batch: int,
    stop: int,
) -> None:
    """Capacity, no empty pack, pictures whole, every position once, and the same packs after a saved state."""
    assume(all(any(fits(document) for document in documents) for documents in (first, second)))
    stage = StageConfig(sources={"a": share, "b": 1 - share}, measure=measure)
    config = run(stage, steps=10, batch=batch, fill_holes=fill_holes, min_piece=min_piece, window_packs=window_packs)
    with TemporaryDirectory() as folder:
        made = {name: make(Path(folder), name, d) for name, d in (("a", first), ("b", second))}
        plan, other = PackPlanner(made, config), PackPlanner(made, config)
        spans: list[Span] = []
        for number in range(10):
            if number == stop:
                other.load(json.loads(json.dumps(plan.state())))
            step = plan.plan_step()
            assert step is not None
            if number >= stop:
                assert step == other.plan_step()
            assert len(step.packs) == batch
            for pack in step.packs:
                assert pack
                assert sum(span.length for span in pack) <= CAPACITY
                assert all(span.length >= 1 and span.start >= 0 for span in pack)
                spans += pack
        assert sum(step.report.source_tokens.values()) == sum(span.length for span in spans)
        assert sum(step.report.source_tokens.values()) + step.report.padded == 10 * batch * CAPACITY
        visual = 0
        for index, (name, source) in enumerate(made.items()):
            ours = [span for span in spans if span.source == index]
            check_every_position_once(plan, name, ours)
            for span in ours:
                ids, pictures = source.ids(span.document, span.start, span.length + 1)
                rows = int((ids[:-1] == TOKENS.image_token_id).sum())
                assert rows == len(pictures) * IMAGE_TOKENS == span.pictures * IMAGE_TOKENS, "pictures are whole"
                assert not span.pictures or span.start == 0
                visual += rows
        assert sum(step.report.source_visual.values()) == visual


def test_two_epochs_and_a_half(sources: Sources) -> None:
    plan = PackPlanner(chosen(sources, TEXT), run(TEXT, steps=250, batch=1))
    check_every_position_once(plan, "text", [span for pack in all_packs(plan) for span in pack])
    assert plan.upcoming["text"].epochs > 2


def test_a_small_dataset_is_drawn_again_in_another_order(tmp_path: Path) -> None:
    text = make(tmp_path, "text", [[CAPACITY + 1]] * 30)
    plan = PackPlanner({"text": text}, run(TEXT, steps=60, batch=1, window_packs=10))
    packs = [pack[0].document for pack in all_packs(plan)]
    epochs = [packs[:30], packs[30:]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(30))
    assert epochs[0] != epochs[1]


# -- what the order depends on -------------------------------------------------------------------------------------------


def test_only_seed_and_configuration_decide(sources: Sources, tmp_path: Path) -> None:
    config = run(HALVES, batch=3, steps=32)
    packs = all_packs(PackPlanner(sources, config))
    again = {name: source for name, source in four_sources(tmp_path / "elsewhere").items() if name in sources}
    assert all_packs(PackPlanner(again, config)) == packs
    assert all_packs(PackPlanner(sources, run(HALVES, batch=3, steps=32, seed=2))) != packs


def test_the_digest_is_of_what_is_trained_on(sources: Sources) -> None:
    steps = list(PackPlanner(sources, run(HALVES, steps=30)).plans())
    assert len({step.digest for step in steps}) == 30
    assert [step.digest for step in PackPlanner(sources, run(HALVES, steps=30)).plans()] == [s.digest for s in steps]
    other = [step.digest for step in PackPlanner(sources, run(HALVES, steps=30, seed=2)).plans()]
    assert not {step.digest for step in steps} & set(other)


def test_micro_batches_and_what_is_frozen_do_not_change_the_order(sources: Sources) -> None:
    config = run(HALVES, steps=20)
    other = replace(
        run(replace(HALVES, freeze=("vision",), lr_policy="cooldown"), steps=20),
        schedule=replace(config.schedule, micro_batch_size=2, lr=1.0),
    )
    plan = PackPlanner(sources, config)
    all_packs(plan, 10)
    late = PackPlanner(sources, other)
    assert late.load(plan.state()) == []
    assert all_packs(late) == all_packs(plan)


def test_another_process_plans_the_same(sources: Sources) -> None:
    """Hashes of strings differ between processes: no order may come from a set of names."""
    prefixes = {name: str(source.reader.prefix) for name, source in sources.items()}
    program = f"""
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.packing import PackPlanner
from tests.data.planning_cases import TOKENS, IMAGE_TOKENS, all_packs, run
from tests.data.test_packing import HALVES
sources = {{n: DocumentSource(n, IndexedReader(p), TOKENS, IMAGE_TOKENS) for n, p in {prefixes!r}.items()}}
packs = all_packs(PackPlanner(sources, run(HALVES, batch=5, steps=10)))
print([[(s.source, s.document, s.start, s.length) for s in pack] for pack in packs])
"""
    packs = all_packs(PackPlanner(sources, run(HALVES, batch=5, steps=10)))
    ours = [[(s.source, s.document, s.start, s.length) for s in pack] for pack in packs]
    root = Path(__file__).parents[2]
    for hashes in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hashes, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(ours)


def test_a_window_is_in_no_order_of_lengths(tmp_path: Path) -> None:
    """Best fit opens packs with the longest documents first; training must not see them so."""
    rng = np.random.default_rng(0)
    text = make(tmp_path, "text", [[int(n)] for n in rng.integers(8, 60, 3000)])
    plan = PackPlanner({"text": text}, run(TEXT, steps=1, batch=256, fill_holes=False))
    longest = np.array([max(span.length for span in pack) for pack in all_packs(plan)])
    assert abs(np.corrcoef(longest, np.arange(256))[0, 1]) < 0.2


# -- stages and state ----------------------------------------------------------------------------------------------------


def test_a_stage_goes_on_in_the_documents_and_starts_its_shares(sources: Sources) -> None:
    stages = (StageConfig(name="text", until=0.5, sources={"text": 1.0}), replace(HALVES, name="images"))
    plan = PackPlanner(sources, run(*stages, steps=50))
    before = [span for pack in all_packs(plan, 25) for span in pack]
    assert {span.source for span in before} == {0}
    late = PackPlanner(sources, run(*stages, steps=50))
    late.load(json.loads(json.dumps(plan.state())))
    first = plan.plan_step()
    assert first is not None
    assert first.report.achieved_visual_share > 0.05, "the share is of the stage, not of the run"
    after = [span for pack in (*first.packs, *all_packs(plan)) for span in pack]
    assert {span.source for span in after} == {0, 1}
    check_every_position_once(plan, "text", [span for span in before + after if span.source == 0])
    assert [span for pack in all_packs(late) for span in pack] == after


def test_stages_may_have_other_lengths_batches_and_pictures(sources: Sources) -> None:
    stages = (
        replace(HALVES, name="short", until_steps=10),
        replace(HALVES, name="long", sequence_length=128, global_batch_size=2, image_size=2),
    )
    config = run(*stages, steps=30)
    plan = PackPlanner(sources, config)
    steps = list(plan.plans())
    assert [len(step.packs) for step in steps] == [4] * 10 + [2] * 20
    assert max(sum(s.length for s in pack) for step in steps[10:] for pack in step.packs) > CAPACITY
    long = [s for step in steps[10:] for pack in step.packs for s in pack if s.source == 1]
    lengths = sources["captions"].lengths(np.array([s.document for s in long]), 1).positions
    assert [s.length for s in long] == lengths.tolist(), "a picture is one row there"
    late = PackPlanner(sources, config)
    late.load(json.loads(json.dumps(steps[17].state)))
    assert list(late.plans()) == steps[18:]


def test_a_state_is_small_and_does_not_change_with_its_planner(sources: Sources) -> None:
    plan = PackPlanner(sources, run(HALVES))
    all_packs(plan, 3)
    state = plan.state()
    saved = json.dumps(state)
    assert len(saved) < 600
    all_packs(plan, 30)
    assert json.dumps(state) == saved


def test_planning_may_run_ahead_of_training(sources: Sources) -> None:
    """The state of a step is that after it, however many were planned since."""
    config = run(HALVES, steps=60)
    steps = list(PackPlanner(sources, config).plans())
    for at in (0, 7, 31, 58):
        late = PackPlanner(sources, config)
        late.load(json.loads(json.dumps(steps[at].state)))
        assert list(late.plans()) == steps[at + 1 :]


def test_a_changed_dataset_is_refused_at_load(sources: Sources, tmp_path: Path) -> None:
    plan = PackPlanner(sources, run(HALVES))
    all_packs(plan, 3)
    changed = {**sources, "text": make(tmp_path / "other", "text", [[20], [30]])}
    with pytest.raises(DataError, match=r"other/text is not the dataset that the checkpoint was trained on"):
        PackPlanner(changed, run(HALVES)).load(plan.state())


# -- another curriculum at a resume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 3, 20, 40])
@pytest.mark.parametrize(
    "changed",
    [
        run(StageConfig(sources={"text": 0.9, "captions": 0.1})),
        run(HALVES, window_packs=7),
        run(HALVES, steps=300),
        run(HALVES, sequence_length=96),
        run(HALVES, batch=7),
    ],
    ids=["weights", "window", "longer", "length", "batch"],
)
def test_what_was_consumed_stays_consumed_and_nothing_is_lost(sources: Sources, changed: Any, at: int) -> None:
    old = PackPlanner(sources, run(HALVES, window_packs=32))
    before = all_packs(old, at)
    saved = json.loads(json.dumps(old.state()))
    new = PackPlanner(sources, changed)
    told = new.load(saved, PackPlanner(sources, run(HALVES, window_packs=32)))
    assert new.step == at
    assert all("come first" in line for line in told)
    after = all_packs(new, 60)
    for number, name in enumerate(sources):
        spans = [span for pack in before + after for span in pack if span.source == number]
        check_every_position_once(new, name, spans)


def test_a_change_holds_from_the_next_pack_on(sources: Sources) -> None:
    old = PackPlanner(sources, run(TEXT, sources_of(HALVES), steps=100))
    all_packs(old, 3)
    new = PackPlanner(sources, run(HALVES))
    new.load(old.state(), PackPlanner(sources, run(TEXT, sources_of(HALVES), steps=100)))
    step = new.plan_step()
    assert step is not None
    assert {span.source for pack in step.packs for span in pack} == {0, 1}


def sources_of(stage: StageConfig) -> StageConfig:
    return replace(stage, name="later")


def test_a_resumed_change_resumes(sources: Sources) -> None:
    """A kill between the change and the end of what it carried loses nothing either."""
    first = run(HALVES, window_packs=32)
    old = PackPlanner(sources, first)
    all_packs(old, 5)
    changed = run(StageConfig(sources={"text": 0.9, "captions": 0.1}), window_packs=5)
    new = PackPlanner(sources, changed)
    new.load(old.state(), PackPlanner(sources, first))
    steps = list(new.plans())
    for at in (0, 1, 10):
        late = PackPlanner(sources, changed)
        assert late.load(json.loads(json.dumps(steps[at].state))) == []
        assert list(late.plans()) == steps[at + 1 :]
    assert len(json.dumps(steps[-1].state)) < 600, "what was carried is used up"


def test_sources_may_come_and_go(sources: Sources, tmp_path: Path) -> None:
    both = run(HALVES)
    old = PackPlanner(sources, both)
    spans = [span for pack in all_packs(old, 5) for span in pack]
    code = make(tmp_path / "more", "code", [[20]] * 50)
    stage = StageConfig(sources={"code": 0.5, "text": 0.5})
    new = PackPlanner({"code": code, "text": sources["text"]}, run(stage))
    told = "\n".join(new.load(old.state(), PackPlanner(sources, both)))
    assert "source 'code' is new" in told
    assert "source 'captions' is no longer there" in told
    after = [span for pack in all_packs(new, 40) for span in pack]
    check_every_position_once(new, "code", [s for s in after if s.source == 0])
    text = [s for s in spans if s.source == 0] + [s for s in after if s.source == 1]
    check_every_position_once(new, "text", text)


def test_a_change_without_the_old_configuration_is_refused(sources: Sources) -> None:
    old = PackPlanner(sources, run(HALVES))
    all_packs(old, 5)
    with pytest.raises(DataError, match="planned with another curriculum"):
        PackPlanner(sources, run(TEXT)).load(old.state())


# -- passes ----------------------------------------------------------------------------------------------------------------


def test_a_run_ends_where_a_source_has_had_its_passes(sources: Sources) -> None:
    plan = PackPlanner(sources, run(HALVES, steps=1000, max_epochs={"captions": 2.0}))
    steps = list(plan.plans())
    assert len(steps) < 1000
    assert plan.ended == "source 'captions' has had its 2 passes (curriculum.max_epochs)"
    counts = np.bincount([s.document for step in steps for pack in step.packs for s in pack if s.source == 1], minlength=60)
    assert counts.max() == 2
    assert counts.sum() >= 120 - 4 * CAPACITY // 8, "but for what a global batch would have needed"
    assert 1.9 < steps[-1].report.source_epochs["captions"] <= 2


def test_others_take_the_share_of_a_source_that_is_used_up(tmp_path: Path) -> None:
    four = four_sources(tmp_path)
    stage = StageConfig(sources={"text": 0.4, "code": 0.2, "captions": 0.4})
    config = run(stage, steps=200, max_epochs={"captions": 1.0}, when_exhausted="reweight")
    plan = PackPlanner(chosen(four, stage), config)
    steps = list(plan.plans())
    assert len(steps) == 200
    captions = [s.document for step in steps for pack in step.packs for s in pack if s.source == 2]
    assert len(set(captions)) == len(captions) >= 55, "each once, but for less than a pack"
    last = steps[-1].report.source_tokens
    middle = steps[100].report.source_tokens
    text, code = (last[name] - middle[name] for name in ("text", "code"))
    assert text / code == pytest.approx(2, rel=0.05)
    late = PackPlanner(chosen(four, stage), config)
    late.load(json.loads(json.dumps(steps[150].state)))
    assert list(late.plans()) == steps[151:]


def test_repeating_goes_on_and_counts(sources: Sources) -> None:
    plan = PackPlanner(sources, run(HALVES, steps=200, max_epochs={"captions": 1.0}, when_exhausted="repeat"))
    steps = list(plan.plans())
    assert len(steps) == 200
    assert steps[-1].report.source_epochs["captions"] > 2


# -- long documents ------------------------------------------------------------------------------------------------------


def counted(plan: PackPlanner, name: str) -> tuple[int, int]:
    known = plan.state()["sources"][name]
    return known["truncated"], known["dropped"]


def test_split_trains_all_of_a_long_text(tmp_path: Path) -> None:
    plan = PackPlanner({"text": make(tmp_path, "text", [[3 * CAPACITY + 11]])}, run(TEXT, steps=8, batch=1, window_packs=4))
    spans = [span for pack in all_packs(plan) for span in pack]
    check_every_position_once(plan, "text", spans)
    assert max(span.start for span in spans) > 2 * CAPACITY
    assert counted(plan, "text") == (0, 0)


def test_truncate_keeps_the_first_piece_and_counts(tmp_path: Path) -> None:
    text = make(tmp_path, "text", [[3 * CAPACITY], [CAPACITY + 1]])
    plan = PackPlanner({"text": text}, run(TEXT, steps=10, batch=1, window_packs=5, long_documents="truncate"))
    spans = [span for pack in all_packs(plan) for span in pack]
    assert {(span.start, span.length) for span in spans} == {(0, CAPACITY)}
    assert counted(plan, "text") == (sum(span.document == 0 for span in spans), 0)


def test_drop_leaves_long_documents_out_and_counts(tmp_path: Path) -> None:
    text = make(tmp_path, "text", [[3 * CAPACITY], [CAPACITY + 1], [CAPACITY + 2]])
    plan = PackPlanner({"text": text}, run(TEXT, steps=10, batch=1, window_packs=5, long_documents="drop"))
    assert {span.document for pack in all_packs(plan) for span in pack} == {1}
    truncated, dropped = counted(plan, "text")
    assert truncated == 0
    assert dropped in (18, 19, 20), "two in each of the ten epochs, the last perhaps not yet met"


def test_a_long_text_after_pictures_is_truncated_and_counted(tmp_path: Path) -> None:
    stage = StageConfig(sources={"mixed": 1.0})
    plan = PackPlanner({"mixed": make(tmp_path, "mixed", [[0, 3 * CAPACITY]])}, run(stage, steps=5, batch=1, window_packs=5))
    spans = [span for pack in all_packs(plan) for span in pack]
    assert [(span.start, span.length) for span in spans] == [(0, CAPACITY)] * 5
    assert counted(plan, "mixed") == (5, 0)


def test_pictures_that_fill_more_than_a_pack_are_dropped_and_counted(tmp_path: Path) -> None:
    documents = [[0] * 17, [0] * 16, [50, 0, 50, 0]]
    stage = StageConfig(sources={"mixed": 1.0})
    plan = PackPlanner({"mixed": make(tmp_path, "mixed", documents)}, run(stage, steps=5, batch=1, window_packs=5))
    spans = [span for pack in all_packs(plan) for span in pack]
    assert {(span.document, span.start, span.length) for span in spans} == {(1, 0, CAPACITY)}
    assert counted(plan, "mixed")[1] >= 8


@pytest.mark.parametrize(("document", "how"), [([0] * 17, "split"), ([CAPACITY + 2], "drop")])
def test_a_source_of_which_nothing_fits_is_refused(document: Document, how: str, tmp_path: Path) -> None:
    plan = PackPlanner({"x": make(tmp_path, "x", [document] * 3)}, run(StageConfig(sources={"x": 1.0}), long_documents=how))
    with pytest.raises(DataError, match=r"/x: no document fits a pack of 64 positions; raise data\.sequence_length"):
        plan.plan_step()


def test_pictures_of_a_pack_are_bounded_if_asked(sources: Sources) -> None:
    stage = StageConfig(sources={"captions": 1.0})
    most = {
        limit: max(
            sum(s.pictures for s in pack) for pack in all_packs(PackPlanner(chosen(sources, stage), run(stage, **data)))
        )
        for limit, data in ((None, {}), (3, {"max_pictures": 3}))
    }
    assert most[3] == 3
    assert most[None] > 4


# -- holes ---------------------------------------------------------------------------------------------------------------


def test_text_leaves_almost_no_padding(sources: Sources) -> None:
    def padding(**options: Any) -> float:
        steps = list(PackPlanner(sources, run(HALVES, steps=75, **options)).plans())
        return steps[-1].report.padded / (300 * CAPACITY)

    assert padding(min_piece=1) < 0.005
    assert padding() < 0.03
    assert padding(fill_holes=False) > 2 * padding(min_piece=1), "without cutting, holes stay"


def test_pieces_that_fill_holes_are_not_shorter_than_asked(tmp_path: Path) -> None:
    text = make(tmp_path, "text", [[n] for n in range(30, 60)])
    plan = PackPlanner({"text": text}, run(TEXT, steps=50, min_piece=12))
    spans = [span for pack in all_packs(plan) for span in pack]
    pieces = [span for span in spans if span.length < text.lengths(np.array([span.document])).positions[0]]
    assert pieces
    assert min(span.length for span in pieces) >= 12


def test_captions_alone_are_packed_by_best_fit(tmp_path: Path) -> None:
    """Pairs of 40 and 24: in order they would leave much open, in a window nothing is but at its end."""
    captions = make(tmp_path, "captions", [[0, 37], [0, 21]] * 20)
    stage = StageConfig(sources={"captions": 1.0})
    (near, far) = (
        list(PackPlanner({"captions": captions}, run(stage, steps=100, batch=1, window_packs=window)).plans())[-1]
        for window in (1, 50)
    )
    assert far.report.padded < near.report.padded / 2


def test_a_share_that_captions_cannot_reach_is_refused_before_the_run(sources: Sources) -> None:
    late = StageConfig(name="late", sources={"text": 0.05, "captions": 0.95}, measure="visual_tokens")
    with pytest.raises(ConfigError, match=r"stage 'late'.*at most 0\.\d{3} can"):
        PackPlanner(sources, run(replace(HALVES, until=0.5), late))
