"""Which layers a run takes."""

from __future__ import annotations

import sys
import types

import pytest

from megatron_vlm.config.loading import load_config
from megatron_vlm.errors import UserError
from megatron_vlm.models.specs import choose_layer_spec


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine imports."""
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("wanted", "lora", "device", "taken"),
    [
        ("auto", 0, "cuda", "transformer_engine"),
        ("auto", 8, "cuda", "host"),
        ("auto", 0, "cpu", "host"),
        ("host", 0, "cuda", "host"),
        ("transformer_engine", 0, "cuda", "transformer_engine"),
    ],
)
def test_what_is_taken(wanted: str, lora: int, device: str, taken: str) -> None:
    overrides = ["--parallel.layer_spec", wanted, "--model.lora.rank", str(lora)]
    assert choose_layer_spec(load_config(preset="tiny", overrides=overrides), device) == taken


@pytest.mark.usefixtures("engine")
def test_fused_kernels_on_cpu_ranks_are_refused() -> None:
    config = load_config(preset="tiny", overrides=["--parallel.layer_spec", "transformer_engine"])
    with pytest.raises(UserError, match="on CPU ranks; set it to host or auto"):
        choose_layer_spec(config, "cpu")
