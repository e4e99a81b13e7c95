"""fuse_embeddings: every row of the decoder's input is the row it should be, and so are the gradients, to the bit."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from megatron_vlm.ops import fuse
from megatron_vlm.ops.fuse import fuse_embeddings
from megatron_vlm.ops.fuse_reference import fuse_embeddings_backward_reference, fuse_embeddings_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def batch(seed: int, b: int, s: int, vocab: int, rows: int, used: int) -> tuple[Tensor, Tensor]:
    """Tokens, and a row index in which `used` of `rows` rows stand at random places. Tokens under rows are nonsense."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, vocab, (b, s), generator=generator)
    row_index = torch.full((b * s,), -1, dtype=torch.int32)
    used = min(used, rows, b * s)
    places = torch.randperm(b * s, generator=generator)[:used]
    row_index[places] = torch.randperm(rows, generator=generator)[:used].int()
    row_index = row_index.view(b, s)
    tokens[row_index >= 0] = -77
    return tokens, row_index


def weights(seed: int, vocab: int, rows: int, hidden: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab, hidden, generator=generator).to(dtype).requires_grad_()
    return weight, torch.randn(rows, hidden, generator=generator).to(dtype).requires_grad_()


@given(
    seed=st.integers(0, 999),
    b=st.integers(0, 3),
    s=st.integers(1, 40),
    hidden=st.one_of(st.integers(1, 70), st.sampled_from([127, 2048, 4099])),
    vocab=st.integers(1, 50),
    rows=st.integers(0, 30),
    used=st.integers(0, 30),
    dtype=st.sampled_from(DTYPES),
    shards=st.integers(1, 8),
    slices=st.integers(1, 4),
    threads=st.sampled_from([1, 3]),
)
def test_it_is_the_reference_to_the_bit(seed, b, s, hidden, vocab, rows, used, dtype, shards, slices, threads) -> None:
    """For each vocabulary shard and each slice of the sequence, forward and backward; and the shards sum to the whole."""
    tokens, row_index = batch(seed, b, s, vocab, rows, used)
    weight, image_rows = weights(seed, vocab, rows, hidden, dtype)
    shard_size, slice_size = -(-vocab // shards), -(-s // slices)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for first in range(0, s, slice_size):
            count = min(slice_size, s - first)
            total = torch.zeros(count, b, hidden, dtype=dtype)
            for start in range(0, vocab, shard_size):
                shard = weight.detach()[start : start + shard_size].requires_grad_()
                here = start == 0
                arguments = (start, vocab, first, count, here)
                out = fuse_embeddings(
                    tokens,
                    shard,
                    image_rows,
                    row_index,
                    vocab_start=start,
                    vocab_size=vocab,
                    first_position=first,
                    positions=count,
                    rows_here=here,
                )
                assert torch.equal(out, fuse_embeddings_reference(tokens, shard, image_rows, row_index, *arguments))
                total += out.detach()
                gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
                found = torch.autograd.grad(out, (shard, image_rows), gradient)
                expected = fuse_embeddings_backward_reference(gradient, tokens, row_index, shard.size(0), rows, start, first)
                assert torch.equal(found[0], expected[0])
                assert torch.equal(found[1], expected[1])
            whole = fuse_embeddings(tokens, weight, image_rows, row_index, first_position=first, positions=count)
            assert torch.equal(total, whole)
    finally:
        torch.set_num_threads(before)


def test_an_example() -> None:
    tokens = torch.tensor([[0, 2, 9, 9], [1, 9, 1, 1]])
    row_index = torch.tensor([[-1, -1, 1, 0], [-1, 2, -1, -1]], dtype=torch.int32)
    weight, rows = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[10.0], [20.0], [30.0], [40.0]])
    out = fuse_embeddings(tokens, weight, rows, row_index)
    assert out.shape == (4, 2, 1)
    assert out[:, 0, 0].tolist() == [1, 3, 20, 10]
    assert out[:, 1, 0].tolist() == [2, 30, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_ones_over_threads_are_the_reference_to_the_bit(dtype: torch.dtype) -> None:
    """Large enough for streamed stores and for threads; rows of 1001 elements lie at any alignment."""
    tokens, row_index = batch(1, 4, 1200, 3000, 1500, 1400)
    weight, rows = weights(1, 3000, 1500, 1001, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        out = fuse_embeddings(tokens, weight, rows, row_index)
        gradient = torch.randn(out.shape).to(dtype)
        found = torch.autograd.grad(out, (weight, rows), gradient)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out, fuse_embeddings_reference(tokens, weight, rows, row_index, 0, 3000, 0, 1200, True))
    expected = fuse_embeddings_backward_reference(gradient, tokens, row_index, 3000, 1500, 0, 0)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_gradients_are_those_of_finite_differences() -> None:
    tokens, row_index = batch(2, 2, 7, 5, 6, 4)
    weight, rows = weights(2, 5, 6, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda w, r: fuse_embeddings(tokens, w, r, row_index), (weight, rows))
    # rows that stand outside the slice, and words of another shard
    assert torch.autograd.gradcheck(
        lambda w, r: fuse_embeddings(tokens, w, r, row_index, vocab_start=3, vocab_size=8, first_position=2, positions=3),
        (weight, rows),
    )


@pytest.mark.parametrize("frozen", ["weight", "rows"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    tokens, row_index = batch(2, 2, 7, 5, 6, 4)
    weight, rows = weights(2, 5, 6, 3, torch.float32)
    {"weight": weight, "rows": rows}[frozen].requires_grad_(False)
    fuse_embeddings(tokens, weight, rows, row_index).sum().backward()
    assert (weight.grad is None) == (frozen == "weight")
    assert (rows.grad is None) == (frozen == "rows")


def test_rows_that_another_rank_writes_get_their_gradient_all_the_same() -> None:
    tokens, row_index = batch(2, 2, 7, 5, 6, 6)
    weight, rows = weights(2, 5, 6, 3, torch.float32)
    out = fuse_embeddings(tokens, weight, rows, row_index, rows_here=False)
    gradient = torch.randn(out.shape)
    (found,) = torch.autograd.grad(out, rows, gradient)
    (expected,) = torch.autograd.grad(fuse_embeddings(tokens, weight, rows, row_index), rows, gradient)
    assert torch.equal(found, expected)
    assert not out.transpose(0, 1)[row_index >= 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_strides_are_understood(dtype: torch.dtype) -> None:
    tokens, row_index = batch(3, 3, 8, 9, 5, 5)
    weight, rows = weights(3, 9, 5, 6, dtype)
    plain = fuse_embeddings(tokens, weight, rows, row_index)
    strided = fuse_embeddings(
        tokens.t().contiguous().t(), weight.t().contiguous().t(), rows.repeat(1, 2)[:, :6], row_index.t().contiguous().t()
    )
    assert torch.equal(plain, strided)
    gradient = torch.randn(3, 8, 6).to(dtype).transpose(0, 1)
    found = torch.autograd.grad(plain, (weight, rows), gradient)
    expected = fuse_embeddings_backward_reference(gradient, tokens, row_index, 9, 5, 0, 0)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_no_pictures() -> None:
    tokens, row_index = batch(0, 2, 4, 5, 0, 0)
    weight, _ = weights(0, 5, 0, 3, torch.float32)
    out = fuse_embeddings(tokens, weight, None, row_index)
    assert torch.equal(out, torch.nn.functional.embedding(tokens, weight).transpose(0, 1))


@pytest.mark.parametrize("reference", [False, True], ids=["native", "without the extension"])
@pytest.mark.parametrize(
    ("token", "row", "message"),
    [
        (5, -1, "sequence 1, position 2: token 5 of a vocabulary of 5"),
        (-1, -1, "sequence 1, position 2: token -1"),
        (0, 3, "sequence 1, position 2: row 3 of 3 image rows"),
        (0, -2, "sequence 1, position 2: row -2"),
        (0, 1, "stands at two positions"),
    ],
)
def test_what_is_out_of_range_is_named(monkeypatch, reference, token, row, message) -> None:
    if reference:
        monkeypatch.setattr(fuse, "native_operators", lambda: None)
    tokens, row_index = torch.zeros(2, 4, dtype=torch.int64), torch.full((2, 4), -1, dtype=torch.int32)
    row_index[0, 0] = 1
    tokens[1, 2], row_index[1, 2] = token, row
    with pytest.raises(IndexError, match=message):
        fuse_embeddings(tokens, torch.zeros(5, 2), torch.zeros(3, 2), row_index)


def test_without_the_extension_it_is_the_same(monkeypatch) -> None:
    tokens, row_index = batch(5, 2, 9, 7, 4, 4)
    weight, rows = weights(5, 7, 4, 5, torch.bfloat16)
    gradient = torch.randn(9, 2, 5).to(torch.bfloat16)
    native = fuse_embeddings(tokens, weight, rows, row_index)
    of_native = torch.autograd.grad(native, (weight, rows), gradient)
    monkeypatch.setattr(fuse, "native_operators", lambda: None)
    plain = fuse_embeddings(tokens, weight, rows, row_index)
    of_plain = torch.autograd.grad(plain, (weight, rows), gradient)
    assert torch.equal(native, plain)
    assert all(torch.equal(a, b) for a, b in zip(of_native, of_plain, strict=True))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"tokens": torch.zeros(2, 4)}, TypeError, r"tokens must be int64 \[b, s\], not torch.float32 \[2, 4\]"),
        ({"row_index": torch.zeros(2, 4, dtype=torch.int64)}, TypeError, r"row_index must be int32 \[2, 4\]"),
        ({"row_index": torch.zeros(2, 5, dtype=torch.int32)}, TypeError, r"not torch.int32 \[2, 5\]"),
        ({"weight": torch.zeros(5, 3, dtype=torch.int32)}, TypeError, "weight has dtype int32"),
        ({"rows": torch.zeros(3, 3, dtype=torch.bfloat16)}, TypeError, "cast the rows"),
        ({"rows": torch.zeros(3, 4)}, ValueError, r"rows must be \[n, 3\]"),
        ({"vocab_start": 1, "vocab_size": 5}, ValueError, "words 1 to 6 are not inside a vocabulary of 5"),
        ({"first_position": 2, "positions": 3}, ValueError, "positions 2 to 5 are not inside sequences of 4"),
    ],
)
def test_what_does_not_fit_is_named(changed, error, message) -> None:
    arguments = {
        "tokens": torch.zeros(2, 4, dtype=torch.int64),
        "weight": torch.zeros(5, 3),
        "rows": torch.zeros(3, 3),
        "row_index": torch.full((2, 4), -1, dtype=torch.int32),
    }
    with pytest.raises(error, match=message):
        fuse_embeddings(**(arguments | changed))


def test_tensors_of_two_devices_are_refused() -> None:
    index = torch.zeros(2, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="rows on meta, row_index on cpu: they must be on one device"):
        fuse._check(index.long(), torch.zeros(5, 3), torch.zeros(3, 3, device="meta"), index, 0, 5, 0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_accepts_the_operator(dtype: torch.dtype) -> None:
    tokens, row_index = batch(4, 2, 6, 5, 4, 3)
    weight, rows = weights(4, 5, 4, 3, dtype)
    arguments = (tokens, weight, rows, row_index, 0, 8, 1, 4, True)
    assert set(torch.library.opcheck(torch.ops.megatron_vlm.fuse_embeddings.default, arguments).values()) == {"SUCCESS"}


def test_a_traced_graph_holds_it_as_one_node() -> None:
    tokens, row_index = batch(4, 2, 6, 5, 4, 3)
    weight, rows = weights(4, 5, 4, 3, torch.float32)
    graph = torch.export.export(_Fused(), (tokens, weight, rows, row_index)).graph
    calls = [node.target for node in graph.nodes if node.op == "call_function"]
    assert calls == [torch.ops.megatron_vlm.fuse_embeddings.default]


class _Fused(torch.nn.Module):
    def forward(self, tokens: Tensor, weight: Tensor, rows: Tensor, row_index: Tensor) -> Tensor:
        return fuse_embeddings(tokens, weight, rows, row_index)
