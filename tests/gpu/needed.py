"""What a test of tests/gpu needs, and the words with which it is skipped where that is missing."""

from __future__ import annotations

import pytest
import torch

from megatron_vlm.training.device_check.libraries import fp8_recipes
from megatron_vlm.training.device_check.outcome import LeftOutError

ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def need_gpus(count: int) -> None:
    if torch.cuda.device_count() < count:
        pytest.skip(f"needs {count} CUDA devices, and there are {torch.cuda.device_count()}")


def need_recipe(recipe: str) -> None:
    try:
        reason = fp8_recipes()[recipe]
    except LeftOutError as missing:
        reason = str(missing)
    if reason:
        pytest.skip(f"fp8 {recipe}: {reason}")


def need_engine() -> None:
    pytest.importorskip("transformer_engine.pytorch", reason="needs Transformer Engine")
