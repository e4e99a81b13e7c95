"""`assemble_packs`: worked examples, agreement of the native operator with the reference, and the errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.ops import assemble
from megatron_vlm.ops.assemble import (
    MODALITY_CAPTION,
    MODALITY_NONE,
    MODALITY_TEXT,
    BatchBuffers,
    PackedBatch,
    Segment,
    assemble_packs,
    assemble_packs_reference,
)
from megatron_vlm.ops.native import native_operators

IMAGE, PAD = 9, 0

DTYPES = {
    "tokens": np.int64,
    "labels": np.int64,
    "loss_mask": np.float32,
    "position_ids": np.int64,
    "label_modality": np.uint8,
    "token_modality": np.uint8,
    "row_index": np.int32,
    "cu_seqlens": np.int32,
}


def segment(
    *ids: int, modality: int = MODALITY_TEXT, loss_from: int = 0, masked: tuple[tuple[int, int], ...] = ()
) -> Segment:
    return Segment(np.array(ids, np.int32), modality, loss_from, masked)


@pytest.fixture(params=["native", "reference"])
def assemble_with(request):
    """Either implementation, with the token ids of these tests bound."""
    if request.param == "native":
        assert native_operators() is not None, "not built: run make"
    function = assemble_packs if request.param == "native" else assemble_packs_reference

    def call(packs, sequence_length):
        return function(packs, sequence_length=sequence_length, image_token_id=IMAGE, pad_id=PAD)

    return call


def assert_same(left: PackedBatch, right: PackedBatch) -> None:
    for name, dtype in DTYPES.items():
        one, other = getattr(left, name), getattr(right, name)
        assert one.dtype == other.dtype == dtype, name
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert (left.max_seqlen, left.image_rows) == (right.max_seqlen, right.image_rows)


def test_a_batch_written_out(assemble_with):
    batch = assemble_with(
        [
            [segment(1, 2, 3), segment(IMAGE, IMAGE, 4, 5, modality=MODALITY_CAPTION)],
            [segment(6, 7, 8, 1, 2, 3, 4)],
        ],
        sequence_length=6,
    )
    assert batch.tokens.tolist() == [1, 2, IMAGE, IMAGE, 4, PAD, 6, 7, 8, 1, 2, 3]
    assert batch.labels.tolist() == [2, 3, PAD, 4, 5, PAD, 7, 8, 1, 2, 3, 4]
    assert batch.loss_mask.tolist() == [1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    assert batch.label_modality.tolist() == [1, 1, 0, 2, 2, 0, 1, 1, 1, 1, 1, 1]
    assert batch.position_ids.tolist() == [0, 1, 0, 1, 2, 0, 0, 1, 2, 3, 4, 5]
    assert batch.cu_seqlens.tolist() == [0, 2, 5, 6, 12]
    assert batch.max_seqlen == 6
    n = -1
    assert batch.row_index.tolist() == [n, n, 0, 1, n, n, n, n, n, n, n, n]
    assert batch.token_modality.tolist() == [1, 1, 3, 3, 2, 0, 1, 1, 1, 1, 1, 1]
    assert batch.image_rows == 2
    assert {name: getattr(batch, name).dtype for name in DTYPES} == DTYPES


def test_no_packs_give_an_empty_batch(assemble_with):
    batch = assemble_with([], sequence_length=4)
    assert batch.tokens.shape == batch.labels.shape == batch.loss_mask.shape == (0,)
    assert batch.cu_seqlens.tolist() == [0]
    assert batch.max_seqlen == 0
    assert batch.row_index.shape == (0,)
    assert batch.image_rows == 0


def test_a_pack_without_segments_is_all_padding(assemble_with):
    batch = assemble_with([[], [segment(1, 2)]], sequence_length=3)
    assert batch.tokens.tolist() == [PAD, PAD, PAD, 1, PAD, PAD]
    assert batch.loss_mask.tolist() == [0, 0, 0, 1, 0, 0]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert batch.max_seqlen == 3


def test_an_image_at_the_end_has_slots_and_no_loss(assemble_with):
    batch = assemble_with([[segment(5, IMAGE, IMAGE, IMAGE, modality=MODALITY_CAPTION)]], sequence_length=4)
    assert batch.tokens.tolist() == [5, IMAGE, IMAGE, PAD]
    assert batch.labels.tolist() == [PAD] * 4
    assert batch.loss_mask.sum() == 0
    assert batch.label_modality.tolist() == [MODALITY_NONE] * 4
    assert batch.row_index.tolist() == [-1, 0, 1, -1]


@pytest.mark.parametrize(("loss_from", "mask"), [(0, [1, 1, 1]), (2, [0, 0, 1]), (3, [0, 0, 0]), (2**40, [0, 0, 0])])
def test_loss_starts_where_the_segment_says(assemble_with, loss_from, mask):
    batch = assemble_with([[segment(1, 2, 3, 4, loss_from=loss_from)]], sequence_length=3)
    assert batch.loss_mask.tolist() == mask
    assert batch.label_modality.tolist() == mask
    assert batch.labels.tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("masked", "mask"),
    [
        (((0, 2),), [0, 1, 1, 1]),
        (((1, 2), (3, 5)), [0, 1, 0, 0]),
        (((4, 99),), [1, 1, 1, 0]),
        (((0, 1), (2, 2)), [1, 1, 1, 1]),
        (((-5, 5),), [0, 0, 0, 0]),
    ],
)
def test_masked_turns_are_not_learnt(assemble_with, masked, mask):
    """Ranges are of ids: id j is the label of position j - 1."""
    batch = assemble_with([[segment(1, 2, 3, 4, 5, masked=masked)]], sequence_length=4)
    assert batch.loss_mask.tolist() == mask
    assert batch.label_modality.tolist() == mask
    assert batch.labels.tolist() == [2, 3, 4, 5]


def test_rows_are_numbered_through_long_runs_and_single_placeholders(assemble_with):
    """Runs longer than any stretch that is looked at at once, and placeholders that stand alone."""
    ids = [1] * 70 + [IMAGE] * 200 + [2, IMAGE] * 40 + [3] * 150 + [IMAGE] * 63 + [4]
    batch = assemble_with([[segment(*ids)], [segment(5, IMAGE, 6)]], sequence_length=len(ids))
    places = np.flatnonzero(batch.tokens == IMAGE)
    assert batch.row_index[places].tolist() == list(range(304))
    assert (np.delete(batch.row_index, places) == -1).all()
    assert batch.image_rows == 304


def test_it_writes_into_the_buffers_that_it_is_given():
    buffers = BatchBuffers.allocate(6)
    for native in (True, False):
        for array in buffers.arrays():
            array[:] = 77
        with pytest.MonkeyPatch.context() as patch:
            if not native:
                patch.setattr(assemble, "native_operators", lambda: None)
            batch = assemble_packs(
                [[segment(1, IMAGE, 3)]], sequence_length=6, image_token_id=IMAGE, pad_id=PAD, buffers=buffers
            )
        assert batch.tokens is buffers.tokens
        assert buffers.tokens.tolist() == [1, IMAGE, PAD, PAD, PAD, PAD]
        assert all(77 not in array for array in buffers.arrays())


@pytest.mark.parametrize("native", [True, False])
def test_buffers_of_another_size_are_refused(monkeypatch, native):
    if not native:
        monkeypatch.setattr(assemble, "native_operators", lambda: None)
    with pytest.raises(ValueError, match="tokens must have"):
        assemble_packs([[]], sequence_length=6, image_token_id=IMAGE, pad_id=PAD, buffers=BatchBuffers.allocate(5))


def test_a_segment_of_no_modality_has_no_loss(assemble_with):
    batch = assemble_with([[segment(1, 2, 3, modality=MODALITY_NONE)]], sequence_length=2)
    assert batch.loss_mask.tolist() == [0, 0]
    assert batch.labels.tolist() == [2, 3]


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[::-1], np.s_[3:7]], ids=["strided", "reversed", "slice"])
def test_ids_may_be_any_view(assemble_with, view):
    ids = np.arange(1, 9, dtype=np.int32)[view]
    batch = assemble_with([[Segment(ids, MODALITY_TEXT)]], sequence_length=len(ids) - 1)
    assert batch.tokens.tolist() == ids[:-1].tolist()
    assert batch.labels.tolist() == ids[1:].tolist()


def test_ids_may_be_read_only(assemble_with):
    ids = np.array([1, 2, 3], np.int32)
    ids.flags.writeable = False
    assert assemble_with([[Segment(ids, MODALITY_TEXT)]], sequence_length=2).labels.tolist() == [2, 3]


def test_the_result_owns_its_memory(assemble_with):
    ids = np.array([1, IMAGE, 3], np.int32)
    batch = assemble_with([[Segment(ids, MODALITY_TEXT)]], sequence_length=2)
    before = {name: getattr(batch, name).copy() for name in DTYPES}
    ids[:] = 7
    for name, values in before.items():
        array = getattr(batch, name)
        np.testing.assert_array_equal(array, values)
        assert array.flags.writeable, name


SEGMENTS = st.builds(
    lambda ids, modality, loss_from, masked: segment(
        *ids, modality=modality, loss_from=loss_from, masked=tuple((a, a + n) for a, n in masked)
    ),
    st.lists(st.one_of(st.just(IMAGE), st.integers(-(2**31), 2**31 - 1)), min_size=2, max_size=20),
    st.sampled_from([MODALITY_NONE, MODALITY_TEXT, MODALITY_CAPTION]),
    st.integers(0, 25),
    st.lists(st.tuples(st.integers(-3, 25), st.integers(0, 9)), max_size=2),
)


@st.composite
def batches(draw) -> tuple[list[list[Segment]], int]:
    packs = draw(st.lists(st.lists(SEGMENTS, max_size=5), max_size=5))
    longest = max((sum(len(s.ids) - 1 for s in pack) for pack in packs), default=0)
    return packs, max(1, longest + draw(st.integers(0, 3)))


@given(batches(), st.integers(-(2**31), 8))
def test_native_agrees_with_the_reference(batch, pad_id):
    packs, sequence_length = batch
    bound = {"sequence_length": sequence_length, "image_token_id": IMAGE, "pad_id": pad_id}
    assert_same(assemble_packs(packs, **bound), assemble_packs_reference(packs, **bound))


@given(batches())
def test_what_holds_of_every_batch(batch):
    packs, sequence_length = batch
    result = assemble_packs(packs, sequence_length=sequence_length, image_token_id=IMAGE, pad_id=PAD)
    assert result.tokens.shape == (len(packs) * sequence_length,)
    lengths = np.diff(result.cu_seqlens)
    assert (lengths > 0).all()
    assert result.cu_seqlens[-1] == len(result.tokens)
    # every pack starts a segment, so that a micro-batch can be split at packs
    assert set(range(0, len(result.tokens), sequence_length)) <= set(result.cu_seqlens.tolist())
    np.testing.assert_array_equal(result.position_ids, np.concatenate([np.arange(0), *map(np.arange, lengths)]))
    np.testing.assert_array_equal(result.loss_mask > 0, result.label_modality != MODALITY_NONE)
    assert (result.labels != IMAGE).all()
    # no position is lost: the words of the segments come out in order
    words = [s.ids[:-1] for pack in packs for s in pack]
    if sum(map(len, words)) == len(result.tokens):
        np.testing.assert_array_equal(result.tokens, np.concatenate([np.arange(0), *words]))


def wrong(ids: object, modality: int = MODALITY_TEXT, loss_from: int = 0) -> Segment:
    return Segment(ids, modality, loss_from)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (segment(1), "has 1 ids, but needs at least 2"),
        (segment(), "has 0 ids"),
        (segment(1, 2, 3, 4), "has 3 positions, but only 2 are left"),
        (wrong(np.array([1, 2], np.int64)), r"not int64\[2\]"),
        (wrong(np.array([[1, 2]], np.int32)), r"not int32\[1, 2\]"),
        (wrong([1, 2]), "not list"),
        (wrong(np.array([1, 2], ">i4")), "not >i4"),
        (segment(1, 2, modality=7), "modality is 7"),
        (segment(1, 2, loss_from=-1), "loss_from is -1"),
        (segment(1, 2, masked=((0, 1), (2, 1))), "masked holds the range 2 to 1"),
    ],
    ids=["one id", "no ids", "too long", "int64", "2-d", "list", "byte order", "modality", "loss_from", "masked"],
)
def test_errors_name_the_pack_and_the_segment(assemble_with, bad, message):
    with pytest.raises(ValueError, match=rf"^pack 1, segment 1: .*{message}"):
        assemble_with([[segment(1, 2)], [segment(1, 2, 3), bad]], sequence_length=4)


def test_a_batch_beyond_32_bits_is_refused(assemble_with):
    with pytest.raises(ValueError, match="take fewer packs at once"):
        assemble_with([[], []], sequence_length=2**30)


def test_a_pack_without_room_is_refused(assemble_with):
    with pytest.raises(ValueError, match="sequence_length is 0"):
        assemble_with([], sequence_length=0)


@pytest.mark.parametrize("function", [assemble_packs, assemble_packs_reference])
def test_padding_that_looks_like_an_image_is_refused(function):
    with pytest.raises(ValueError, match="both 5"):
        function([], sequence_length=1, image_token_id=5, pad_id=5)


def test_the_reference_serves_where_there_is_no_extension(monkeypatch):
    packs = [[segment(1, IMAGE, 3)]]
    bound = {"sequence_length": 4, "image_token_id": IMAGE, "pad_id": PAD}
    expected = assemble_packs(packs, **bound)
    calls = []
    reference = assemble.assemble_packs_reference
    monkeypatch.setattr(assemble, "native_operators", lambda: None)
    monkeypatch.setattr(assemble, "assemble_packs_reference", lambda *a, **k: calls.append(a) or reference(*a, **k))
    assert_same(assemble_packs(packs, **bound), expected)
    assert len(calls) == 1


def test_a_batch_cannot_be_changed_by_accident():
    batch = assemble_packs([], sequence_length=1, image_token_id=IMAGE, pad_id=PAD)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.tokens = np.zeros(1, np.int64)  # type: ignore[misc]
