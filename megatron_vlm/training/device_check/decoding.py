"""JPEGs by NVIDIA DALI, on the GPU's own decoder or on the CPU, beside Pillow's pixels."""

from __future__ import annotations

import io
from importlib import metadata

import numpy as np
import torch
from PIL import Image

from megatron_vlm.data.decoding.dali_decoder import DaliDecoder
from megatron_vlm.data.decoding.pillow_decoder import PillowDecoder
from megatron_vlm.training.device_check.outcome import LeftOutError

#: of 255, a mean over all pixels: two decoders round otherwise, and one that mixes up colours or rows is far above
MOST_APART = 3.0


def _jpeg(height: int, width: int, phase: float) -> bytes:
    """A picture without noise, which JPEG keeps well."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 17 + phase), np.cos(y / 23 - phase), np.sin((x + 2 * y) / 41 + phase)]
    pixels = np.stack([127.5 + 120 * wave for wave in waves], axis=-1).astype(np.uint8)
    memory = io.BytesIO()
    Image.fromarray(pixels).save(memory, "JPEG", quality=95)
    return memory.getvalue()


def check_decoding(device: torch.device) -> str:
    """Raises AssertionError where DALI's pixels are not Pillow's."""
    try:
        decoder = DaliDecoder("squash", gpu=device.index or 0 if device.type == "cuda" else None)
    except ImportError:
        raise LeftOutError("NVIDIA DALI is not installed; pictures are decoded on the CPU (see above)") from None
    encoded = [_jpeg(224 + 16 * number, 300, number) for number in range(8)]
    made, expected = np.zeros((2, len(encoded), 224, 224, 3), np.uint8)
    broken = decoder.decode(encoded, made)
    if broken:
        raise AssertionError(f"pictures did not decode: {broken}")
    PillowDecoder("squash").decode(encoded, expected)
    apart = np.abs(made.astype(int) - expected)
    said = f"{apart.mean():.2f} of 255 from Pillow's on average, {apart.max()} at most"
    if apart.mean() > MOST_APART:
        raise AssertionError(said)
    version = next(
        dist.version for dist in metadata.distributions() if (dist.metadata["Name"] or "").startswith("nvidia-dali")
    )
    return f"DALI {version}, {len(encoded)} JPEGs: {said}"
