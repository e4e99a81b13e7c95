"""The CUDA operators of csrc/cuda, called through ctypes: finding their library, checking what is passed, naming errors.

Operators call these methods; nothing here knows autograd. The same class serves the library that the tests build for the
CPU from the same sources.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_vlm.ops.dtypes import dtype_code

#: the `mvlm_interface` of csrc/cuda/interface.cu that this package was written against
EXPECTED_INTERFACE = 1

#: MvlmFault of csrc/cuda/kernels.h, and what it means
FAULTS = {
    1: "a token id is outside the vocabulary",
    2: "a row index is neither -1 nor a row",
    4: "two positions name the same row",
    8: "the table of pictures does not fit its pixels or its patches",
}

#: where setup.py puts the library
LIBRARY = Path(__file__).resolve().parents[1] / "_kernels.so"

_POINTER, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIGNATURES = {
    "mvlm_fuse_forward": [_POINTER] * 5 + [_SIZE] * 9 + [_INT] * 2 + [_POINTER] * 2,
    "mvlm_fuse_backward_rows": [_POINTER] * 4 + [_SIZE] * 6 + [_INT] + [_POINTER] * 2,
    "mvlm_fuse_backward_weight": [_POINTER] * 4 + [_SIZE] * 3 + [_INT] + [_POINTER],
    "mvlm_patchify": (
        [_POINTER] * 3 + [_SIZE, _POINTER] + [_SIZE] * 2 + [_INT] * 2 + [_POINTER] * 2 + [_INT] + [_POINTER] * 2
    ),
}


def describe_faults(bits: int) -> str:
    """What the bits of a fault tensor mean, in words; empty for 0."""
    return "; ".join(meaning for bit, meaning in FAULTS.items() if bits & bit)


class Kernels:
    """The functions of csrc/cuda/kernels.h, on tensors.

    Tensors are contiguous, on one device, and written in place; sizes are theirs. `ValueError` where one has another shape,
    dtype or device than it must; `RuntimeError` with the name of CUDA's error where a launch failed. Nothing is allocated
    and nothing waits: `stream` is a `torch.cuda.Stream.cuda_stream`, and `fault` an int32 tensor of one zero, which gets the
    bits of `FAULTS` when the kernels run.
    """

    def __init__(self, path: Path | str):
        """`OSError` where `path` cannot be loaded, `RuntimeError` where it was built from other sources."""
        self._library = ctypes.CDLL(str(path))
        found = self._library.mvlm_interface()
        if found != EXPECTED_INTERFACE:
            raise RuntimeError(f"{path} has interface {found}, but this package needs {EXPECTED_INTERFACE}")
        self._library.mvlm_error_string.argtypes = [_INT]
        self._library.mvlm_error_string.restype = ctypes.c_char_p
        for name, types in _SIGNATURES.items():
            getattr(self._library, name).argtypes = types

    def fuse_forward(
        self,
        out: Tensor,
        tokens: Tensor,
        row_index: Tensor,
        weight: Tensor,
        rows: Tensor,
        *,
        first_position: int,
        vocab_start: int,
        vocab_size: int,
        rows_here: bool,
        fault: Tensor,
        stream: int,
    ) -> None:
        """Write the decoder's input for `positions` positions from `first_position` on.

        Args:
            out: `[positions, b, h]`, written.
            tokens: int64 `[b, s]`.
            row_index: int32 `[b, s]`, the row of `rows` at this position, -1 where it is a word.
            weight: `[vocab_rows, h]` of out's dtype, the words from `vocab_start` on.
            rows: `[row_count, h]` of out's dtype.
            rows_here: False writes zeros where there is a row.
        """
        positions, batch, hidden = out.shape
        sequence = tokens.size(-1)
        self._call(
            "mvlm_fuse_forward",
            _address(out, (positions, batch, hidden), out.dtype, out),
            _address(tokens, (batch, sequence), torch.int64, out),
            _address(row_index, (batch, sequence), torch.int32, out),
            _address(weight, (weight.size(0), hidden), out.dtype, out),
            _address(rows, (rows.size(0), hidden), out.dtype, out),
            batch,
            sequence,
            hidden,
            first_position,
            positions,
            vocab_start,
            weight.size(0),
            vocab_size,
            rows.size(0),
            int(rows_here),
            dtype_code(out.dtype, "out"),
            _address(fault, (1,), torch.int32, out),
            stream,
            on=out,
        )

    def fuse_backward_rows(
        self,
        gradient_of_rows: Tensor,
        position_of_row: Tensor,
        gradient: Tensor,
        row_index: Tensor,
        *,
        first_position: int,
        fault: Tensor,
        stream: int,
    ) -> None:
        """Write the gradient of `rows`.

        Args:
            gradient_of_rows: `[row_count, h]`, written; zeros where no position of this slice names a row.
            position_of_row: int64 `[row_count]`, workspace; then the flattened `[positions, b]` that names a row, or -1.
            gradient: `[positions, b, h]` of the same dtype.
            row_index: int32 `[b, s]`, as in the forward.
        """
        positions, batch, hidden = gradient.shape
        row_count, sequence = gradient_of_rows.size(0), row_index.size(-1)
        self._call(
            "mvlm_fuse_backward_rows",
            _address(gradient_of_rows, (row_count, hidden), gradient.dtype, gradient),
            _address(position_of_row, (row_count,), torch.int64, gradient),
            _address(gradient, (positions, batch, hidden), gradient.dtype, gradient),
            _address(row_index, (batch, sequence), torch.int32, gradient),
            batch,
            sequence,
            hidden,
            first_position,
            positions,
            row_count,
            dtype_code(gradient.dtype, "gradient"),
            _address(fault, (1,), torch.int32, gradient),
            stream,
            on=gradient,
        )

    def fuse_backward_weight(
        self, gradient_of_weight: Tensor, gradient: Tensor, words: Tensor, places: Tensor, *, stream: int
    ) -> None:
        """Write the gradient of `weight`; the same bits in every run.

        Args:
            gradient_of_weight: `[vocab_rows, h]`, written whole; zeros for words that are not in `words`.
            gradient: `[positions, b, h]` of the same dtype.
            words: int64 `[n]`, ascending: local ids; those outside `[0, vocab_rows)` are passed over.
            places: int64 `[n]`, the flattened `[positions, b]` of each, ascending where ids are equal. They are not checked.
        """
        hidden = gradient.size(-1)
        vocab_rows, count = gradient_of_weight.size(0), words.size(0)
        self._call(
            "mvlm_fuse_backward_weight",
            _address(gradient_of_weight, (vocab_rows, hidden), gradient.dtype, gradient),
            _address(gradient, tuple(gradient.shape), gradient.dtype, gradient),
            _address(words, (count,), torch.int64, gradient),
            _address(places, (count,), torch.int64, gradient),
            count,
            hidden,
            vocab_rows,
            dtype_code(gradient.dtype, "gradient"),
            stream,
            on=gradient,
        )

    def patchify(
        self,
        out: Tensor,
        coordinates: Tensor,
        pixels: Tensor,
        pictures: Tensor,
        *,
        patch_size: int,
        group: int,
        mean_255: Sequence[float],
        std_255: Sequence[float],
        fault: Tensor,
        stream: int,
    ) -> None:
        """Write normalised patch rows and where in its picture each patch lies.

        Args:
            out: `[patches, 3 * patch_size^2]`, written.
            coordinates: int32 `[patches, 2]`, written: row and column.
            pixels: uint8 `[bytes]`, pictures of height x width x 3, one after another.
            pictures: int64 `[n, 4]`: byte offset, height, width, number of the first patch.
            group: patches are in the order of blocks of `group` x `group`.
            mean_255, std_255: three fp32 numbers each, multiplied by 255 in fp32.
        """
        patches, count = out.size(0), pictures.size(0)
        three = ctypes.c_float * 3
        self._call(
            "mvlm_patchify",
            _address(out, (patches, 3 * patch_size * patch_size), out.dtype, out),
            _address(coordinates, (patches, 2), torch.int32, out),
            _address(pixels, (pixels.size(0),), torch.uint8, out),
            pixels.size(0),
            _address(pictures, (count, 4), torch.int64, out),
            count,
            patches,
            patch_size,
            group,
            three(*mean_255),
            three(*std_255),
            dtype_code(out.dtype, "out"),
            _address(fault, (1,), torch.int32, out),
            stream,
            on=out,
        )

    def _call(self, function: str, *arguments: object, on: Tensor) -> None:
        with torch.cuda.device(on.device) if on.is_cuda else contextlib.nullcontext():
            code = getattr(self._library, function)(*arguments)
        if code != 0:
            text = self._library.mvlm_error_string(code).decode()
            raise RuntimeError(f"{function} failed with {text} (code {code})")


def _address(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype, beside: Tensor) -> int:
    """The address of `tensor`, which has to be as given and on the device of `beside`."""
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype or tensor.device != beside.device:
        raise ValueError(
            f"a kernel needs a tensor of shape {list(shape)}, {dtype}, on {beside.device}, but was given one of "
            f"{list(tensor.shape)}, {tensor.dtype}, on {tensor.device}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"a kernel needs contiguous tensors, but one of {list(shape)} has strides {tensor.stride()}")
    return tensor.data_ptr()


@functools.cache
def cuda_kernels() -> Kernels | None:
    """Return the CUDA operators; None on a machine without CUDA, and where their library is missing or does not fit.

    On a machine with CUDA the first call that finds none warns (`RuntimeWarning`) with the reason and the remedy.
    """
    if not torch.cuda.is_available():
        return None
    try:
        return Kernels(LIBRARY)
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"megatron_vlm runs without its CUDA operators: {error}. Slower PyTorch code serves in their place. "
            "To build them, install the CUDA toolkit (nvcc) and run: pip install --no-build-isolation --no-deps -e . "
            "in a checkout of megatron_vlm",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
