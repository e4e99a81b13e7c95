"""A micro-batch without its broken pictures is the one that the same documents give when assembled without them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.micro_batch import MicroBatch, make_micro_batch
from megatron_vlm.data.without_pictures import without_pictures
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_NONE, MODALITY_TEXT, Segment

EOD, IMAGE, PAD = 0, 1, 2
TOKENS = TokenCounts(vocab_size=100, eod_id=EOD, image_token_id=IMAGE, pad_id=PAD)
SIZE = 2


def assemble(packs: list[list[Segment]], length: int, image_tokens: int, shades: list[int] | None) -> MicroBatch:
    """Pictures are of one shade each, by which they are known."""
    pixels = None if shades is None else [np.full((SIZE, SIZE, 3), shade, np.uint8) for shade in shades]
    return make_micro_batch(packs, pixels, TOKENS, StepShape(0, length, 1, 1, SIZE, 1, image_tokens))


@dataclasses.dataclass
class Case:
    packs: list[list[Segment]]
    image_tokens: int
    broken: set[int]

    @property
    def length(self) -> int:
        return max(1, max((sum(len(s.ids) - 1 for s in pack) for pack in self.packs), default=1)) + 2

    @property
    def pictures(self) -> int:
        return sum(len(places(s, self.image_tokens)) for pack in self.packs for s in pack)

    def batch(self, pixels: bool = True) -> MicroBatch:
        return assemble(self.packs, self.length, self.image_tokens, list(range(self.pictures)) if pixels else None)


def places(segment: Segment, image_tokens: int) -> list[int]:
    """Where pictures begin among the ids of a segment."""
    return np.flatnonzero(segment.ids == IMAGE)[::image_tokens].tolist()


@st.composite
def segments(draw: st.DrawFn, image_tokens: int) -> Segment:
    parts = draw(
        st.lists(st.one_of(st.none(), st.lists(st.integers(3, 99), min_size=1, max_size=4)), min_size=1, max_size=5)
    )
    ids = [token for part in parts for token in ([IMAGE] * image_tokens if part is None else part)] + [EOD]
    begin = draw(st.integers(0, len(ids)))
    masked = ((begin, draw(st.integers(begin, len(ids)))),) if draw(st.booleans()) else ()
    modality = MODALITY_CAPTION if IMAGE in ids else MODALITY_TEXT
    return Segment(np.array(ids, np.int32), modality, draw(st.sampled_from([0, 0, 2])), masked)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    image_tokens = draw(st.integers(1, 3))
    packs = draw(st.lists(st.lists(segments(image_tokens), max_size=3), min_size=1, max_size=3))
    case = Case(packs, image_tokens, set())
    if case.pictures:
        case.broken = draw(st.sets(st.integers(0, case.pictures - 1)))
    return case


def piece(segment: Segment, begin: int, end: int, modality: int) -> Segment:
    """Positions [begin, end) of a segment as one of its own."""
    masked = tuple((max(0, a - begin), max(0, b - begin)) for a, b in segment.masked)
    return Segment(segment.ids[begin : end + 1], modality, max(0, segment.loss_from - begin), masked)


def taken_apart(case: Case) -> tuple[list[list[Segment]], list[int]]:
    """The same documents as an author would write them without the broken pictures, with silent padding in their place;
    and the shades of the pictures that stay."""
    packs: list[list[Segment]] = []
    shades: list[int] = []
    number = 0
    for pack in case.packs:
        packs.append([])
        for segment in pack:
            end = len(segment.ids) - 1
            starts = places(segment, case.image_tokens)
            lost = [s for i, s in enumerate(starts) if number + i in case.broken]
            shades += [number + i for i in range(len(starts)) if number + i not in case.broken]
            number += len(starts)
            at = 0
            for stop in [*lost, end]:
                if stop > at:
                    sees = any(at <= s < stop for s in starts if s not in lost)
                    modality = segment.modality if sees or not lost else MODALITY_TEXT
                    packs[-1].append(piece(segment, at, stop, modality))
                if stop < end:
                    packs[-1].append(Segment(np.full(case.image_tokens + 1, PAD, np.int32), MODALITY_NONE))
                at = stop + case.image_tokens
    return packs, shades


def silenced(case: Case) -> tuple[list[list[Segment]], list[int]]:
    """The same documents, those of broken pictures as text that is not learnt."""
    packs: list[list[Segment]] = []
    shades: list[int] = []
    number = 0
    for pack in case.packs:
        packs.append([])
        for segment in pack:
            mine = range(number, number + len(places(segment, case.image_tokens)))
            number = mine.stop
            if case.broken & set(mine):
                ids = np.where(segment.ids == IMAGE, PAD, segment.ids).astype(np.int32)
                packs[-1].append(Segment(ids, MODALITY_NONE))
            else:
                packs[-1].append(segment)
                shades += mine
    return packs, shades


def alike(made: MicroBatch, expected: MicroBatch, but: torch.Tensor) -> None:
    """Everything is equal, except what the token and its label are called where `but`: bool [1, t]."""
    for name, value in expected.__dict__.items():
        found = getattr(made, name)
        if not isinstance(value, torch.Tensor):
            assert found == value, name
            continue
        assert found.dtype == value.dtype, name
        if name in ("tokens", "labels", "token_modality"):
            found, value = found[~but], value[~but]
        assert torch.equal(found, value), name


@given(cases())
def test_text_is_learnt_as_documents_without_the_picture(case: Case) -> None:
    batch = case.batch()
    made = without_pictures(batch, case.broken, case.image_tokens, "text")
    packs, shades = taken_apart(case)
    lost = (batch.row_index >= 0) & torch.isin(batch.row_index // case.image_tokens, torch.tensor(sorted(case.broken)))
    alike(made, assemble(packs, case.length, case.image_tokens, shades), lost)
    assert torch.equal(made.tokens, batch.tokens)
    assert (made.token_modality[lost] == MODALITY_NONE).all()
    assert (made.loss_mask[lost] == 0).all()


@given(cases())
def test_a_skipped_document_is_not_learnt(case: Case) -> None:
    batch = case.batch()
    made = without_pictures(batch, case.broken, case.image_tokens, "skip")
    packs, shades = silenced(case)
    gone = (batch.row_index >= 0) & (made.row_index < 0)
    alike(made, assemble(packs, case.length, case.image_tokens, shades), gone)
    assert torch.equal(made.tokens, batch.tokens)
    assert (made.token_modality[gone] == MODALITY_NONE).all()


@given(cases(), st.sampled_from(["text", "skip"]))
def test_ranks_without_pixels_come_to_the_same(case: Case, policy: str) -> None:
    one = without_pictures(case.batch(), case.broken, case.image_tokens, policy)  # type: ignore[arg-type]
    other = without_pictures(case.batch(pixels=False), case.broken, case.image_tokens, policy)  # type: ignore[arg-type]
    assert other.pixels is None
    alike(dataclasses.replace(one, pixels=None), other, torch.zeros_like(one.tokens, dtype=torch.bool))


@given(cases(), st.sampled_from(["text", "skip"]))
def test_the_batch_that_is_given_stays_as_it_is(case: Case, policy: str) -> None:
    batch, before = case.batch(), case.batch()
    without_pictures(batch, case.broken, case.image_tokens, policy)  # type: ignore[arg-type]
    alike(batch, before, torch.zeros_like(batch.tokens, dtype=torch.bool))
    assert without_pictures(batch, (), case.image_tokens, policy) is batch  # type: ignore[arg-type]


def test_an_interleaved_document_by_hand() -> None:
    """text, broken picture, caption, sound picture, caption."""
    ids = np.array([10, IMAGE, IMAGE, 20, 21, IMAGE, IMAGE, 30, EOD], np.int32)
    batch = assemble([[Segment(ids, MODALITY_CAPTION)]], 9, 2, [7, 8])
    made = without_pictures(batch, [0], 2, "text")
    assert made.cu_seqlens.tolist() == [0, 1, 3, 8, 9]
    assert made.position_ids.tolist() == [[0, 0, 1, 0, 1, 2, 3, 4, 0]]
    assert made.row_index.tolist() == [[-1, -1, -1, -1, -1, 0, 1, -1, -1]]
    assert made.labels[0, 2] == 20, "the first word of the caption, which the picture would predict"
    assert made.loss_mask.tolist() == [[0, 0, 0, 1, 0, 0, 1, 1, 0]]
    none, text, caption = MODALITY_NONE, MODALITY_TEXT, MODALITY_CAPTION
    assert made.label_modality.tolist() == [[none, none, none, caption, none, none, caption, caption, none]]
    assert made.token_modality[0, :5].tolist() == [text, none, none, caption, caption]
    assert made.pixels is not None
    assert made.pixels[:, 0, 0, 0].tolist() == [8]
    assert (made.pictures, made.max_seqlen, made.document_lengths) == (1, 5, (1, 2, 5, 1))


def test_a_number_of_no_picture_is_refused() -> None:
    batch = assemble([[Segment(np.array([IMAGE, 5, EOD], np.int32), MODALITY_CAPTION)]], 4, 1, [0])
    for number in (-1, 1):
        with pytest.raises(ValueError, match=r"of a micro-batch of 1"):
            without_pictures(batch, [number], 1, "text")
