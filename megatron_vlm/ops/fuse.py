"""`fuse_embeddings`: words and image rows become the decoder's input in one pass, with gradients.

What others do in a lookup, a clone and a scatter (each a write of the whole `[s, b, h]`), and often with a wait for the
device, is one write here: every row of the output is copied once from where it stands, a row of the embedding or an image
row. Nothing depends on the data but the numbers: no `nonzero`, no shape that is known only afterwards, no synchronisation.

The operator is registered with torch (`torch.ops.megatron_vlm.fuse_embeddings`), so `torch.compile` keeps it whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_vlm.ops import fuse_kernels
from megatron_vlm.ops.dtypes import dtype_code
from megatron_vlm.ops.faults import fault_flag
from megatron_vlm.ops.fuse_reference import fuse_embeddings_backward_reference, fuse_embeddings_reference
from megatron_vlm.ops.kernels import cuda_kernels
from megatron_vlm.ops.library import LIBRARY
from megatron_vlm.ops.native import native_operators

LIBRARY.define(
    "fuse_embeddings(Tensor tokens, Tensor weight, Tensor rows, Tensor row_index, int vocab_start, int vocab_size, "
    "int first_position, int positions, bool rows_here) -> Tensor"
)
LIBRARY.define(
    "fuse_embeddings_backward(Tensor gradient, Tensor tokens, Tensor row_index, int vocab_rows, int row_count, "
    "int vocab_start, int vocab_size, int first_position, bool of_weight, bool of_rows) -> (Tensor, Tensor)"
)


def fuse_embeddings(
    tokens: Tensor,
    weight: Tensor,
    rows: Tensor | None,
    row_index: Tensor,
    *,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    first_position: int = 0,
    positions: int | None = None,
    rows_here: bool = True,
) -> Tensor:
    """The decoder's input `[positions, b, h]` of positions `first_position` to `first_position + positions`.

    Args:
        tokens: int64 `[b, s]`; what stands under an image row is not read as a word.
        weight: `[v, h]` of fp32, bf16, fp16 or fp64: this rank's shard of the embedding.
        rows: `[n, h]` of the weight's dtype, or None for no pictures.
        row_index: int32 `[b, s]`: the image row that stands at a position, -1 for a word. A row stands at one position
            at most; one that stands nowhere gets a gradient of zero.
        vocab_start: the first word of the shard. Words of other shards give zeros, so that one all-reduce, or one
            reduce-scatter along positions, over tensor-parallel ranks ends it.
        vocab_size: all words, of every shard; None: those of this shard.
        first_position, positions: a slice of each sequence, as one rank of sequence parallelism has it; the
            whole by default.
        rows_here: whether this rank writes the image rows. Where ranks hold the same rows and sum what they write, one of
            them does. The gradient of the rows is given on all of them, as for any tensor that tensor-parallel ranks hold
            alike (megatron-core's `reduce_from_tensor_model_parallel_region`).

    Gradients of `weight` are sums in fp32, in the order of positions, rounded once: the same bits in every run.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices that do not fit.
        IndexError: on the CPU, a word outside the vocabulary, a row that does not exist or stands twice. On a GPU such a
            position is left zero, and `megatron_vlm.ops.faults.raise_faults` tells.
    """
    if rows is None:
        rows = weight.new_empty(0, weight.size(-1))
    size = weight.size(0) if vocab_size is None else vocab_size
    count = tokens.size(-1) - first_position if positions is None else positions
    result: Tensor = torch.ops.megatron_vlm.fuse_embeddings(
        tokens, weight, rows, row_index, vocab_start, size, first_position, count, rows_here
    )
    return result


def _check(
    tokens: Tensor,
    weight: Tensor,
    rows: Tensor,
    row_index: Tensor,
    vocab_start: int,
    vocab_size: int,
    first: int,
    count: int,
) -> None:
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise TypeError(f"tokens must be int64 [b, s], not {tokens.dtype} {list(tokens.shape)}")
    if row_index.dtype != torch.int32 or row_index.shape != tokens.shape:
        raise TypeError(
            f"row_index must be int32 {list(tokens.shape)} as tokens are, not {row_index.dtype} {list(row_index.shape)}"
        )
    dtype_code(weight.dtype, "weight")
    if weight.dim() != 2:
        raise ValueError(f"weight must be [words, h], not {list(weight.shape)}")
    if rows.dim() != 2 or rows.size(1) != weight.size(1):
        raise ValueError(f"rows must be [n, {weight.size(1)}] beside this weight, not {list(rows.shape)}")
    if rows.dtype != weight.dtype:
        raise TypeError(f"rows are {rows.dtype} and weight is {weight.dtype}: cast the rows")
    if not tokens.device == weight.device == rows.device == row_index.device:
        raise ValueError(
            f"tokens are on {tokens.device}, weight on {weight.device}, rows on {rows.device}, row_index on "
            f"{row_index.device}: they must be on one device"
        )
    if vocab_start < 0 or vocab_start + weight.size(0) > vocab_size:
        raise ValueError(
            f"words {vocab_start} to {vocab_start + weight.size(0)} are not inside a vocabulary of {vocab_size}"
        )
    if first < 0 or count < 0 or first + count > tokens.size(1):
        raise ValueError(f"positions {first} to {first + count} are not inside sequences of {tokens.size(1)}")


def _slice(
    native: Any,
    tokens: Tensor,
    row_index: Tensor,
    first: int,
    count: int,
    vocab_start: int,
    vocab_rows: int,
    vocab_size: int,
    row_count: int,
) -> Any:
    batch, sequence = tokens.shape
    return native.FuseSlice(
        tokens.data_ptr(),
        row_index.data_ptr(),
        batch,
        sequence,
        first,
        count,
        vocab_start,
        vocab_rows,
        vocab_size,
        row_count,
    )


# torch passes what follows the tensors in the order of the schemas above; `where` is that, undivided.


@torch.library.impl(LIBRARY, "fuse_embeddings", "CPU")
def _forward_cpu(tokens: Tensor, weight: Tensor, rows: Tensor, row_index: Tensor, *where: Any) -> Tensor:
    vocab_start, vocab_size, first_position, positions, rows_here = where
    _check(tokens, weight, rows, row_index, vocab_start, vocab_size, first_position, positions)
    native = native_operators()
    if native is None:
        _check_values(tokens, row_index, vocab_size, rows.size(0), first_position, positions)
        return fuse_embeddings_reference(tokens, weight, rows, row_index, *where)
    tokens, weight, rows, row_index = (t.contiguous() for t in (tokens, weight, rows, row_index))
    hidden = weight.size(1)
    out = weight.new_empty(positions, tokens.size(0), hidden)
    part = _slice(
        native, tokens, row_index, first_position, positions, vocab_start, weight.size(0), vocab_size, rows.size(0)
    )
    native.check_slice(part)
    native.fuse_forward(
        out.data_ptr(),
        weight.data_ptr(),
        rows.data_ptr(),
        hidden,
        rows_here,
        dtype_code(weight.dtype, "weight"),
        part,
        torch.get_num_threads(),
    )
    return out


@torch.library.impl(LIBRARY, "fuse_embeddings_backward", "CPU")
def _backward_cpu(gradient: Tensor, tokens: Tensor, row_index: Tensor, *where: Any) -> tuple[Tensor, Tensor]:
    vocab_rows, row_count, vocab_start, vocab_size, first_position, of_weight, of_rows = where
    native = native_operators()
    if native is None:
        return _backward_reference(gradient, tokens, row_index, *where)
    gradient, tokens, row_index = (t.contiguous() for t in (gradient, tokens, row_index))
    hidden, code, threads = gradient.size(2), dtype_code(gradient.dtype, "the gradient"), torch.get_num_threads()
    part = _slice(
        native, tokens, row_index, first_position, gradient.size(0), vocab_start, vocab_rows, vocab_size, row_count
    )
    native.check_slice(part)
    weight_gradient = gradient.new_empty(vocab_rows if of_weight else 0, hidden)
    row_gradient = gradient.new_empty(row_count if of_rows else 0, hidden)
    if of_weight:
        native.fuse_backward_weight(weight_gradient.data_ptr(), gradient.data_ptr(), hidden, code, part, threads)
    if of_rows:
        native.fuse_backward_rows(row_gradient.data_ptr(), gradient.data_ptr(), hidden, code, part, threads)
    return weight_gradient, row_gradient


@torch.library.impl(LIBRARY, "fuse_embeddings", "CUDA")
def _forward_cuda(tokens: Tensor, weight: Tensor, rows: Tensor, row_index: Tensor, *where: Any) -> Tensor:
    _check(tokens, weight, rows, row_index, *where[:4])
    kernels, device = cuda_kernels(), tokens.device
    if kernels is None:
        return fuse_embeddings_reference(tokens, weight, rows, row_index, *where)
    stream = torch.cuda.current_stream(device).cuda_stream
    return fuse_kernels.forward(kernels, fault_flag(device), stream, tokens, weight, rows, row_index, *where)


@torch.library.impl(LIBRARY, "fuse_embeddings_backward", "CUDA")
def _backward_cuda(gradient: Tensor, tokens: Tensor, row_index: Tensor, *where: Any) -> tuple[Tensor, Tensor]:
    kernels, device = cuda_kernels(), gradient.device
    if kernels is None:
        return _backward_reference(gradient, tokens, row_index, *where)
    vocab_rows, row_count, vocab_start, _, first_position, of_weight, of_rows = where
    stream = torch.cuda.current_stream(device).cuda_stream
    sizes = (vocab_rows, row_count, vocab_start, first_position, of_weight, of_rows)
    return fuse_kernels.backward(kernels, fault_flag(device), stream, gradient, tokens, row_index, *sizes)


def _backward_reference(gradient: Tensor, tokens: Tensor, row_index: Tensor, *where: Any) -> tuple[Tensor, Tensor]:
    vocab_rows, row_count, vocab_start, _, first_position, of_weight, of_rows = where
    weight_gradient, row_gradient = fuse_embeddings_backward_reference(
        gradient, tokens, row_index, vocab_rows, row_count, vocab_start, first_position
    )
    # what is not asked for has no rows; two results may not share memory
    empty = (gradient.new_empty(0, gradient.size(2)) for _ in range(2))
    return weight_gradient if of_weight else next(empty), row_gradient if of_rows else next(empty)


def _check_values(tokens: Tensor, row_index: Tensor, vocab_size: int, row_count: int, first: int, count: int) -> None:
    """The faults that the native operator names, for the reference on the CPU."""
    tokens, row_index = tokens[:, first : first + count], row_index[:, first : first + count]
    word = row_index < 0
    wrong = (row_index < -1) | (row_index >= row_count) | (word & ((tokens < 0) | (tokens >= vocab_size)))
    used = row_index[row_index >= 0]
    if wrong.any():
        sequence, position = (int(i) for i in wrong.nonzero()[0])
        what = (
            f"token {int(tokens[sequence, position])} of a vocabulary of {vocab_size}"
            if row_index[sequence, position] == -1
            else f"row {int(row_index[sequence, position])} of {row_count} image rows"
        )
        raise IndexError(f"sequence {sequence}, position {position + first}: {what}")
    if used.unique().numel() != used.numel():
        raise IndexError("an image row stands at two positions")


@torch.library.register_fake("megatron_vlm::fuse_embeddings", lib=LIBRARY)
def _forward_fake(tokens: Tensor, weight: Tensor, rows: Tensor, row_index: Tensor, *where: Any) -> Tensor:
    _, _, _, positions, _ = where
    return weight.new_empty(positions, tokens.size(0), weight.size(1))


@torch.library.register_fake("megatron_vlm::fuse_embeddings_backward", lib=LIBRARY)
def _backward_fake(gradient: Tensor, tokens: Tensor, row_index: Tensor, *where: Any) -> tuple[Tensor, Tensor]:
    vocab_rows, row_count, _, _, _, of_weight, of_rows = where
    hidden = gradient.size(2)
    return gradient.new_empty(vocab_rows if of_weight else 0, hidden), gradient.new_empty(
        row_count if of_rows else 0, hidden
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens, weight, rows, row_index, vocab_start, vocab_size, first_position, _, _ = inputs
    ctx.save_for_backward(tokens, row_index)
    ctx.sizes = (weight.size(0), rows.size(0), vocab_start, vocab_size, first_position)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    tokens, row_index = ctx.saved_tensors
    of_weight, of_rows = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
    if not (of_weight or of_rows):
        return (None,) * 9
    weight_gradient, row_gradient = torch.ops.megatron_vlm.fuse_embeddings_backward(
        gradient, tokens, row_index, *ctx.sizes, of_weight, of_rows
    )
    found = (weight_gradient if of_weight else None, row_gradient if of_rows else None)
    return (None, *found, None, None, None, None, None, None)


torch.library.register_autograd("megatron_vlm::fuse_embeddings", _backward, setup_context=_setup_context, lib=LIBRARY)
