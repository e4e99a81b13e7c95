"""Process-wide choices of the command line that a library must not make."""

from __future__ import annotations

import os
import warnings


def quiet_host_warnings() -> None:
    """On a machine without a GPU, megatron-core's notices that GPU kernels are missing say nothing new."""
    import torch

    if not torch.cuda.is_available():
        # one thread a rank: ranks share the cores, and more threads only fight over them
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"megatron\.core")
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
