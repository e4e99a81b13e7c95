"""The dtypes that native operators take, by the numbers that csrc gives them."""

from __future__ import annotations

import torch

#: csrc/dtype.h and csrc/cuda/kernels.h
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


def dtype_code(dtype: torch.dtype, what: str) -> int:
    """Raises TypeError for a dtype that the operators do not take, naming `what` has it."""
    if dtype not in DTYPE_CODES:
        names = ", ".join(str(known).removeprefix("torch.") for known in DTYPE_CODES)
        raise TypeError(f"{what} has dtype {str(dtype).removeprefix('torch.')}; it must be one of {names}")
    return DTYPE_CODES[dtype]
