"""DALI's pipeline on the GPU's decoder and on the CPU, from one definition (beside Pillow: test_dali_decoder)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_vlm.training.device_check.decoding import check_decoding
from tests.data.decoding.samples import encode, photograph
from tests.gpu.needed import ON_A_GPU

pytestmark = ON_A_GPU


@pytest.mark.parametrize("resize", ["squash", "centre_crop", "letterbox"])
def test_it_shows_on_the_gpu_what_it_shows_on_the_cpu(resize: str) -> None:
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI")
    from megatron_vlm.data.decoding.dali_decoder import DaliDecoder

    encoded = [encode(photograph(300 + 40 * n, 420, n), subsampling=n % 3) for n in range(9)]
    on_gpu, on_cpu = np.zeros((2, len(encoded), 224, 224, 3), np.uint8)
    assert DaliDecoder(resize, gpu=0).decode(encoded, on_gpu) == {}  # type: ignore[arg-type]
    assert DaliDecoder(resize).decode(encoded, on_cpu) == {}  # type: ignore[arg-type]
    apart = np.abs(on_gpu.astype(int) - on_cpu)
    assert apart.mean() <= 1.0
    assert apart.max() <= 16  # nvJPEG interpolates colours otherwise at sharp edges


def test_the_short_form() -> None:
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI")
    assert "from Pillow's on average" in check_decoding(torch.device("cuda", 0))
