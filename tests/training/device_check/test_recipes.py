"""Which FP8 recipes are said to be allowed: what Transformer Engine says of a chip, asked of its real code."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from megatron_vlm.training.device_check import libraries
from megatron_vlm.training.device_check.outcome import LeftOutError


@pytest.mark.skipif(find_spec("transformer_engine") is not None, reason="says what it does without Transformer Engine")
def test_without_transformer_engine() -> None:
    with pytest.raises(LeftOutError, match="Transformer Engine does not import"):
        libraries.check_recipes()


@pytest.mark.te
@pytest.mark.parametrize(
    ("capability", "allowed"),
    [
        ((8, 0), "none"),
        ((8, 9), "delayed, current"),
        ((9, 0), "delayed, current, blockwise"),
        ((10, 0), "delayed, current, blockwise, mxfp8"),
    ],
)
def test_by_chip(capability: tuple[int, int], allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformer_engine.pytorch", reason="needs Transformer Engine")
    from transformer_engine.pytorch import quantization

    for kept in ("_FP8_SUPPORT", "_FP8_BLOCK_SCALING_SUPPORT", "_MXFP8_SUPPORT"):
        monkeypatch.setattr(quantization, kept, None)
    monkeypatch.setattr(quantization, "get_device_compute_capability", lambda: capability)
    assert libraries.check_recipes().split(";")[0] == f"allowed: {allowed}"
