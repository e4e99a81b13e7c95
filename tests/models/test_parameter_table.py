"""Both layer specs make one model: the same checkpoint keys, shapes and shardings (Transformer Engine's are on record)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.models.checkpoint_names import FUSED_NORMS
from tests.distributed.ranks import run_ranks
from tests.models.parameter_table import as_text, tables

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).with_name("parameter_table_te_2.20.2.json")

needs_engine = pytest.mark.skipif(not find_spec("transformer_engine"), reason="needs Transformer Engine")


def run_module(name: str, *arguments: str) -> str:
    """In a process of its own: it tells megatron-core of a device that is not there."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.models.{name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return json.loads(RECORDED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def host() -> dict[str, Any]:
    (found,) = run_ranks(1, tables, "host")  # forked, where megatron-core is imported already
    return json.loads(as_text(found))


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "name"}


def _host_name(name: str) -> str:
    """The host's name of a parameter of Transformer Engine's modules."""
    for fused, own in FUSED_NORMS.items():
        name = name.replace(fused, own)
    return name


def _compare(host: dict[str, Any], engine: dict[str, Any]) -> None:
    assert list(host) == list(engine)
    for configuration, table in engine.items():
        kept = {key: entry for key, entry in table.items() if not key.startswith("not in checkpoints")}
        assert {key: _plain(entry) for key, entry in host[configuration].items()} == {
            key: _plain(entry) for key, entry in kept.items()
        }, configuration
        assert {key: entry["name"] for key, entry in host[configuration].items()} == {
            key: _host_name(entry["name"]) for key, entry in kept.items()
        }, configuration
        # what only Transformer Engine has are the biases of norms that have none here; they are held at zero
        for key, entry in table.items():
            if key not in kept:
                assert entry["name"].endswith("norm_bias") or entry["name"].endswith("norm.bias")
                assert configuration.startswith(("vlm_", "norms over all heads")), configuration


def test_the_host_models_are_those_that_were_recorded_of_transformer_engine(
    host: dict[str, Any], recorded: dict[str, Any]
) -> None:
    _compare(host, recorded)


def test_the_record_holds_fused_norms_splits_and_sequence_parallelism(recorded: dict[str, Any]) -> None:
    """A table of the host's modules, or of one rank, would pass the comparison and show nothing."""
    table = recorded["vlm_7b, TP 4 with sequence parallelism"]
    norm = table["language_model.decoder.layers.*.mlp.linear_fc1.layer_norm_weight"]
    assert norm["name"].endswith("mlp.linear_fc1.layer_norm_weight")
    assert norm["sequence_parallel"]
    assert norm["layers"] == 32
    fc1 = table["language_model.decoder.layers.*.mlp.linear_fc1.weight"]
    assert (fc1["whole"], fc1["part"], fc1["dimension"]) == ([22016, 4096], [5504, 4096], 0)
    assert fc1["at"] == [[3 * 2752, 0], [11008 + 3 * 2752, 0]]  # gate and up, each split
    assert table["vision.decoder.layers.*.input_layernorm.bias"]["name"].endswith("linear_qkv.layer_norm_bias")
    assert "not in checkpoints: language_model.decoder.final_layernorm.bias" in table


@pytest.mark.te
@needs_engine
def test_transformer_engine_makes_the_same_models(host: dict[str, Any], recorded: dict[str, Any]) -> None:
    engine = json.loads(run_module("parameter_table", "transformer_engine"))
    _compare(host, engine)
    assert engine == recorded


@pytest.mark.te
@needs_engine
def test_first_weights_and_checkpoints_are_the_same_under_both(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run_module("exchanged_checkpoints", str(tmp_path / "saved")).splitlines()]
    assert len(lines) == 22
    for line in lines:
        assert line["parameters"] > 50, line
        assert not line["first weights unlike"], line
        assert not line["loaded unlike"], line
        assert not line["not zero"], line
