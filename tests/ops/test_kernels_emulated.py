"""The kernels of csrc/cuda, run on the CPU, against the references: any launch size, any order of threads, the same bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.ops.fuse_reference import fuse_embeddings_backward_reference, fuse_embeddings_reference
from tests.ops.emulation import emulated_kernels, needs_compiler
from tests.ops.kernel_cases import (
    TYPES,
    Fusion,
    Patching,
    check_fusion,
    check_patchify,
    run_backward_rows,
    run_backward_weight,
    run_forward,
    run_patchify,
    same,
)

pytestmark = needs_compiler

#: (x, y) of grid and block, and whether threads run from the last to the first; 0 is the operator's own choice
shapes = st.tuples(
    st.tuples(st.integers(0, 7), st.integers(0, 3)),
    st.one_of(st.just((0, 0)), st.tuples(st.sampled_from([1, 3, 7, 31, 33, 97]), st.sampled_from([1, 3, 5]))),
    st.booleans(),
)
# The grid and block of patchify have no y.
flat_shapes = st.tuples(
    st.tuples(st.integers(0, 7), st.just(1)),
    st.tuples(st.sampled_from([0, 1, 3, 31, 97, 255]), st.just(1)),
    st.booleans(),
)
hidden_sizes = st.one_of(
    st.sampled_from([1, 2, 3, 4, 7, 8, 15, 16, 63, 64, 1024, 4095, 4096, 4097, 4099]),
    st.integers(1, 300),
    st.integers(1, 4099),
)


@st.composite
def fusions(draw: st.DrawFn) -> Fusion:
    sequence = draw(st.integers(1, 12))
    first = draw(st.integers(0, sequence - 1))
    shards = draw(st.integers(1, 8))
    return Fusion(
        batch=draw(st.integers(1, 3)),
        sequence=sequence,
        hidden=draw(hidden_sizes),
        first_position=first,
        positions=draw(st.integers(1, sequence - first)),
        vocab_size=shards * draw(st.integers(1, 6)),
        shards=shards,
        shard=draw(st.integers(0, shards - 1)),
        images=draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
        spare_rows=draw(st.integers(0, 2)),
        shift=draw(st.sampled_from([0, 0, 1, 2, 4])),
        dtype=draw(st.sampled_from(TYPES)),
        rows_here=draw(st.booleans()),
        seed=draw(st.integers(0, 1 << 30)),
    )


@given(fusions(), shapes)
def test_fusion_and_its_gradients_are_those_of_the_references(case, shape):
    kernels = emulated_kernels()
    with kernels.shaped(*shape):
        check_fusion(kernels, case)


@pytest.mark.parametrize("dtype", TYPES)
def test_long_sums_keep_their_order(dtype):
    """Forty positions and few words, so that a sum goes over several batches of loads."""
    kernels = emulated_kernels()
    case = Fusion(
        batch=3, sequence=40, hidden=24, first_position=0, positions=40, vocab_size=2, shards=1, shard=0, dtype=dtype
    )
    for seed in range(5):
        check_fusion(kernels, replace(case, seed=seed, images=0.1))


def test_nothing_to_do_is_done():
    """No positions, no pictures: the gradients are zeros all the same."""
    kernels = emulated_kernels()
    case = Fusion(positions=0)
    tokens, row_index, row_count = case.indices()
    out, faults = run_forward(kernels, case, tokens, row_index, row_count)
    assert (out.numel(), faults) == (0, 0)
    of_rows, _ = run_backward_rows(kernels, case, row_index, row_count)
    assert of_rows.numel() > 0
    assert not of_rows.any()
    of_weight = run_backward_weight(kernels, case, tokens, row_index)
    assert of_weight.numel() > 0
    assert not of_weight.any()
    check_patchify(kernels, Patching(sizes=()))


def test_a_picture_across_the_border_of_two_slices_goes_to_both():
    """Five image rows at positions 2 to 6, cut after position 3: the two halves are the whole."""
    kernels = emulated_kernels()
    case = Fusion(batch=1, sequence=8, hidden=8, vocab_size=4, shards=1, shard=0)
    tokens = torch.arange(8).view(1, 8) % 4
    row_index = torch.full((1, 8), -1, dtype=torch.int32)
    row_index[0, 2:7] = torch.tensor([4, 2, 0, 1, 3], dtype=torch.int32)
    whole = replace(case, first_position=0, positions=8)
    halves = [replace(case, first_position=start, positions=4) for start in (0, 4)]
    got = [run_forward(kernels, half, tokens, row_index, 5) for half in halves]
    assert [faults for _, faults in got] == [0, 0]
    expected, _ = run_forward(kernels, whole, tokens, row_index, 5)
    assert same(torch.cat([out for out, _ in got]), expected)
    assert same(expected[2, 0], case.filled(5, 8, salt=2)[4])
    of_rows, _ = run_backward_rows(kernels, halves[1], row_index, 5)
    gradient = case.filled(4, 1, 8, salt=3)
    assert same(of_rows[[0, 1, 3]], gradient[:3, 0])
    assert not of_rows[[2, 4]].any()  # named before this slice


def test_every_half_and_brain_number_is_widened_and_rounded():
    """A word at each position gives its number back; two positions a word give every rounding of a sum."""
    kernels = emulated_kernels()
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    other = patterns[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))]
    for dtype in (torch.float16, torch.bfloat16):
        gradient = torch.stack([patterns.view(dtype), other.view(dtype)]).view(2, 1, -1)
        for positions in (1, 2):
            out = torch.empty(1, 1 << 16, dtype=dtype)
            words, places = torch.zeros(positions, dtype=torch.int64), torch.arange(positions)
            kernels.fuse_backward_weight(out, gradient[:positions].contiguous(), words, places, stream=0)
            assert same(out[0], gradient[:positions, 0].float().sum(0).add(0.0).to(dtype))


bad_index = st.sampled_from([-1, -1, -1, 0, 1, 2, 3, 4, 5, -2, 6, 1 << 30, -(1 << 31), (1 << 31) - 1])
bad_token = st.sampled_from([0, 1, 2, 3, 4, 5, -1, 6, 1 << 40, -(1 << 63), (1 << 63) - 1])


@given(st.lists(st.tuples(bad_token, bad_index), min_size=10, max_size=10), st.sampled_from(TYPES), shapes)
def test_what_is_out_of_range_is_named_and_nothing_else_is_touched(positions, dtype, shape):
    kernels = emulated_kernels()
    row_count, vocab_size = 6, 6
    case = Fusion(2, 5, 8, 0, 5, vocab_size, 2, 1, dtype=dtype)
    tokens = torch.tensor([token for token, _ in positions]).view(2, 5)
    row_index = torch.tensor([index for _, index in positions], dtype=torch.int32).view(2, 5)
    bad_row = (row_index < -1) | (row_index >= row_count)
    bad_word = (row_index == -1) & ((tokens < 0) | (tokens >= vocab_size))
    with kernels.shaped(*shape):
        got, faults = run_forward(kernels, case, tokens, row_index, row_count)
        of_rows, row_faults = run_backward_rows(kernels, case, row_index, row_count)
    assert faults == int(bad_word.any()) | int(bad_row.any()) << 1
    # What is bad has zeros: as a word of the other shard.
    tidy_tokens = tokens.masked_fill(bad_word | bad_row, 0)
    tidy_index = row_index.masked_fill(bad_row, -1)
    weight, rows = case.filled(3, 8, salt=1), case.filled(row_count, 8, salt=2)
    assert same(got, fuse_embeddings_reference(tidy_tokens, weight, rows, tidy_index, 3, vocab_size, 0, 5, True))
    named = row_index.T.reshape(-1)
    gradient = case.filled(5, 2, 8, salt=3).view(10, 8)
    for row in range(row_count):
        at = (named == row).nonzero()[:, 0]
        assert same(of_rows[row], gradient[at[0]] if len(at) else torch.zeros(8, dtype=dtype)), "the first that names a row"
    _, counts = named[(named >= 0) & (named < row_count)].unique(return_counts=True)
    assert row_faults == int(bad_row.any()) << 1 | int((counts > 1).any()) << 2


def test_words_of_other_shards_and_image_rows_do_not_count():
    """Ids below and above the shard stand before and after its own in the sorted words."""
    kernels = emulated_kernels()
    case = Fusion(batch=1, sequence=6, hidden=8, first_position=0, positions=6, vocab_size=9, shards=3, shard=1)
    tokens = torch.tensor([[0, 8, 4, 3, 4, 2]])
    row_index = torch.tensor([[-1, -1, -1, -1, -1, 0]], dtype=torch.int32)
    got = run_backward_weight(kernels, case, tokens, row_index)
    gradient = case.filled(6, 1, 8, salt=3)
    expected, _ = fuse_embeddings_backward_reference(gradient, tokens, row_index, 3, 1, 3, 0)
    assert same(got, expected)
    assert not got[2].any()


@st.composite
def patchings(draw: st.DrawFn) -> Patching:
    patch_size, group = draw(st.sampled_from([1, 2, 3, 4, 7, 14, 15, 16])), draw(st.integers(1, 3))
    side = st.integers(0, 3).flatmap(
        lambda blocks: st.integers(0, patch_size - 1).map(lambda rest: blocks * group * patch_size + rest)
    )
    return Patching(
        sizes=tuple(draw(st.lists(st.tuples(side, side), max_size=5))),
        patch_size=patch_size,
        group=group,
        gap=draw(st.integers(0, 3)),
        shift=draw(st.sampled_from([0, 0, 0, 1])),
        dtype=draw(st.sampled_from(TYPES)),
        seed=draw(st.integers(0, 1 << 30)),
    )


@given(patchings(), flat_shapes)
def test_patches_are_those_of_the_reference(case, shape):
    kernels = emulated_kernels()
    with kernels.shaped(*shape):
        check_patchify(kernels, case)


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("patch_size", [14, 16, 9])
@pytest.mark.parametrize("dtype", TYPES)
def test_patches_of_usual_sizes(dtype, patch_size, group):
    side = patch_size * group
    sizes = ((side, 2 * side), (3 * side + 5, side + 1), (0, 7), (2 * side, 2 * side))
    kernels = emulated_kernels()
    check_patchify(kernels, Patching(sizes, patch_size, group, dtype=dtype))
    for backwards in (False, True):
        with kernels.shaped((1, 1), (64, 1), backwards):  # one block finds its patches several times
            check_patchify(kernels, Patching(sizes, patch_size, group, dtype=dtype))


# (picture, column) and what stands there, in a table of three pictures whose patches are 4, 2 and 1
GOOD_TABLE = [[0, 4, 4, 0], [48, 2, 4, 4], [72, 2, 2, 6]]
BAD_TABLES = {
    "an offset before the pixels": (1, 0, -1, [4, 5]),
    "an offset past the pixels": (1, 0, 85, [4, 5]),
    "the end past the pixels": (2, 0, 73, [6]),
    "a height past the pixels": (2, 1, 3, [6]),
    "a height beyond all numbers": (0, 1, (1 << 63) - 1, [0, 1, 2, 3]),
    "a width beyond all numbers": (0, 2, (1 << 63) - 1, [0, 1, 2, 3]),
    "a negative width": (1, 2, -4, [4, 5]),
    "fewer patches than the next picture says": (0, 1, 2, [2, 3]),
    "more patches than the next picture says": (2, 3, 5, [6]),
    "a first patch before all": (0, 3, -1, [0, 1, 2, 3]),
    "a first patch after the first": (0, 3, 1, [0]),
    "a last picture that begins after all patches": (2, 3, 1 << 60, [6]),
    "a last picture that begins before all": (2, 3, -(1 << 63), None),
}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_does_not_fit_is_named_and_nothing_is_touched(name, backwards):
    number, column, value, zeros = BAD_TABLES[name]
    table = [list(line) for line in GOOD_TABLE]
    table[number][column] = value
    kernels = emulated_kernels()
    case = Patching(patch_size=2)
    with kernels.shaped((2, 1), (33, 1), backwards):
        got, coordinates, faults = run_patchify(kernels, case, torch.tensor(table), 7, case.pixels(84))
    assert faults == 8
    if zeros is not None:
        empty = [patch for patch in range(7) if not got[patch].any()]
        assert empty == zeros
        assert not coordinates[zeros].any()


def test_a_good_table_has_no_fault_and_a_broken_group_has():
    kernels = emulated_kernels()
    table, pixels = torch.tensor(GOOD_TABLE), Patching().pixels(84)
    assert run_patchify(kernels, Patching(patch_size=2), table, 7, pixels)[2] == 0
    assert run_patchify(kernels, Patching(patch_size=2, group=2), table, 7, pixels)[2] == 8
    assert run_patchify(kernels, Patching(patch_size=2), table, 8, pixels)[2] == 8  # the last patch is no picture's
    assert run_patchify(kernels, Patching(patch_size=2), table[:0], 3, pixels)[2] == 8
    assert run_patchify(kernels, Patching(patch_size=2), table[:1], 0, pixels)[2] == 8


@settings(max_examples=30)
@given(st.integers(1, 2048), st.integers(0, 200))
def test_any_patch_size_that_fits_is_divided_rightly(patch_size, seed):
    """One patch, three values a channel: only the places of large patches are new here."""
    if patch_size > 300:
        patch_size = 300 + patch_size % 41
    check_patchify(emulated_kernels(), Patching(((patch_size, patch_size),), patch_size, seed=seed))
