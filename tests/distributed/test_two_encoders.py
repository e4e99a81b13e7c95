"""Two encoders side by side: features of each as it has them alone, alike in every layout, frozen and trained together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_vlm.config.checks import problems
from megatron_vlm.config.data import TokenCounts
from megatron_vlm.interop.exporting import plan_export
from megatron_vlm.interop.importing import plan_import, run_import
from megatron_vlm.interop.mapping import Unexpressed
from megatron_vlm.interop.sources import open_source
from megatron_vlm.parallel import topology
from megatron_vlm.planning.parameters import total_parameters
from megatron_vlm.training.checkpoint import checkpoint_config, load_model
from megatron_vlm.training.engine import Engine, unwrap
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, SAMPLE, TP2, configuration, one_step, parameters
from tests.interop.oracles import base_config, pictures, pixel_values, randomized
from tests.interop.vision_models import tower

pytestmark = pytest.mark.distributed

SECOND = "{kind: dinov2, register_tokens: 2, patch_size: 16, num_layers: 2, hidden_size: 32, num_attention_heads: 4}"
FIELDS = {"model.vision_second": SECOND, "model.projector.kind": "mlp3"}
STAGES = "[{name: frozen, until: 0.4, sources: {text: 0.5, captions: 0.5}, freeze: [vision]}, {name: all, sources: "
STAGES += "{text: 0.5, captions: 0.5}}]"
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "tp2 + sp": (2, {**TP2, "sequence_parallel": True}, {}),
    "tp2 x pp2": (4, {**TP2, **PP2}, {}),
    "dp2 overlapped": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}, {}),
}


def _configuration(data: Path, folder: Path, parallel: dict[str, Any] | None = None) -> Any:
    given = {**FIELDS, "curriculum.stages": STAGES, "logging.directory": folder}
    return configuration(data, parallel, **given)


def _steps(config: Any) -> tuple[list[dict[str, float]], list[str], dict[str, int]]:
    run = Run(config)
    run._start()
    before = parameters(run)
    results = [one_step(run), one_step(run)]
    frozen = [n for n, v in parameters(run).items() if ".vision." in n and not np.array_equal(v, before[n])]
    counts: dict[str, int] = {}
    for name, value in before.items():
        module = name.split(".")[1].replace("language_model", "language")
        counts[module] = counts.get(module, 0) + value.size
    return [*results, one_step(run), one_step(run)], frozen, counts


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, float]], list[str], dict[str, int]]:
    return run_ranks(1, _steps, _configuration(data, tmp_path_factory.mktemp("alone")))[0]


def test_frozen_and_counted_together(data: Path, alone: tuple[list[dict[str, float]], list[str], dict[str, int]]) -> None:
    _, moved, counts = alone
    assert moved == []
    config = _configuration(data, data)
    padded = config.model.language.vocab_pad_multiple * -(-4096 // config.model.language.vocab_pad_multiple)
    assert counts == total_parameters(config.model, padded)


@pytest.mark.parametrize("name", [n if n == "tp2 + sp" else pytest.param(n, marks=pytest.mark.slow) for n in LAYOUTS])
def test_the_same_in_every_layout(name: str, data: Path, tmp_path: Path, alone: Any) -> None:
    ranks, parallel, _ = LAYOUTS[name]
    found, _, _ = run_ranks(ranks, _steps, _configuration(data, tmp_path, parallel))[0]
    for ours, theirs in zip(found, alone[0], strict=True):
        assert abs(ours["loss"] - theirs["loss"]) < 5e-6


@torch.no_grad()
def _imported(folder: Path) -> tuple[float, float, list[str]]:
    """How far both halves of our features are from those of the two towers alone; then what is refused."""
    towers = {name: randomized(tower(name)) for name in ("siglip", "dinov2_registers")}
    for name, model in towers.items():
        model.save_pretrained(folder / name)
    sources = [open_source(folder / name) for name in towers]
    overrides = ["--data.tokenizer", str(SAMPLE / "tokenizer"), "--model.projector.pixel_shuffle", "1"]
    plan = plan_import(sources, base_config(), overrides)
    assert plan.problems == []
    checkpoint = run_import(plan, folder / "run")
    shown = pictures(2)
    models = [plan.config, replace(plan.config, model=replace(plan.config.model, vision=plan.config.model.vision_second))]
    expected = [
        model(pixel_values=pixel_values(config, shown)).last_hidden_state[:, config.model.vision.prefix_tokens :]
        for model, config in zip(towers.values(), models, strict=True)
    ]
    config = checkpoint_config(checkpoint)
    top = topology.initialize(config.parallel, seed=1)
    engine = Engine(config, TokenCounts(4096, 0, 1, 2), top)
    load_model(engine, checkpoint)
    features = unwrap(engine.chunks[0]).vision(torch.from_numpy(np.stack(shown)))
    halves = features.split([e.shape[-1] for e in expected], dim=-1)
    refusals = []
    for part in ("all", "vision"):
        try:
            plan_export(folder / "run", part)  # type: ignore[arg-type]
        except Unexpressed as reason:
            refusals.append(str(reason))
    return (*(float((a - b).abs().max() / b.abs().max()) for a, b in zip(halves, expected, strict=True)), refusals)  # type: ignore[return-value]


def test_two_towers_come_in_and_keep_their_features(tmp_path: Path) -> None:
    first, second, refusals = run_ranks(1, _imported, tmp_path)[0]
    assert first < 2e-5
    assert second < 2e-5
    assert refusals == ["no class of transformers has two encoders side by side; export it with --part language"] * 2
    assert load_file(tmp_path / "siglip" / "model.safetensors")


def test_unlike_patches_are_refused(data: Path) -> None:
    given = {**FIELDS, "model.vision_second": SECOND.replace("patch_size: 16", "patch_size: 8")}
    found = problems(configuration(data, **given), 1)
    assert len(found) == 1
    assert found[0].startswith("model.vision_second.patch_size: 8, and model.vision has 16")
    assert found[0].endswith("nearest that does: 16")
