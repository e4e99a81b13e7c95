"""Low-rank updates: nothing at first, the same in every layout, and the model beneath keeps its bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.config.run import RunConfig
from megatron_vlm.models.lora import is_lora
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration, one_step, parameters

pytestmark = pytest.mark.distributed

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2": (2, TP2),
    "tp2 + sp": (2, {**TP2, "sequence_parallel": True}),
    "pp2": (2, PP2),
    "dp2 overlapped": (2, {"overlap_grad_reduce": True, "overlap_param_gather": True}),
}
#: a learning rate at which three steps are seen in the losses
FIELDS = {"model.lora": "{rank: 4, alpha: 32}", "schedule.lr": 1e-2, "curriculum.stages.0.until": 1.0}
STAGES = {"curriculum.stages": "[{sources: {text: 0.5, captions: 0.5}, freeze: [vision]}]"}


def _train(config: RunConfig) -> None:
    Run(config).train()


def _steps(config: RunConfig, count: int) -> tuple[list[dict[str, float]], dict[str, Any], dict[str, Any]]:
    run = Run(config)
    run._start()
    before = parameters(run)
    return [one_step(run) for _ in range(count)], before, parameters(run)


@pytest.fixture(scope="module")
def base(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    run_ranks(1, _train, configuration(data, **{**STAGES, "logging.directory": folder, "schedule.train_steps": 2}))
    return folder


def _config(data: Path, base: Path, folder: Path, parallel: dict[str, Any] | None = None, **fields: Any) -> RunConfig:
    chosen = {**FIELDS, **STAGES, "checkpoint.start_from": base, "logging.directory": folder, **fields}
    chosen.pop("curriculum.stages.0.until")
    return configuration(data, parallel, **chosen)


@pytest.fixture(scope="module")
def alone(data: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_ranks(1, _steps, _config(data, base, tmp_path_factory.mktemp("alone")), 3)[0]


def test_it_begins_as_the_model_beneath(data: Path, base: Path, tmp_path: Path, alone: Any) -> None:
    plain = _config(data, base, tmp_path, **{"model.lora": "{rank: 0}"})
    (losses, _, _) = run_ranks(1, _steps, plain, 1)[0]
    assert alone[0][0]["loss"] == pytest.approx(losses[0]["loss"], abs=2e-6)


def test_only_the_updates_and_the_projector_learn(alone: Any) -> None:
    losses, before, after = alone
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if is_lora(name) or ".projector." in f".{name}"}
    assert sum(is_lora(name) for name in moved) == 2 * 4 * 4  # two matrices of four targets in four layers
    assert losses[2]["loss"] != losses[0]["loss"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_learns_alike(name: str, data: Path, base: Path, tmp_path: Path, alone: Any) -> None:
    ranks, parallel = LAYOUTS[name]
    for losses, _, _ in run_ranks(ranks, _steps, _config(data, base, tmp_path, parallel), 3):
        for ours, theirs in zip(losses, alone[0], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], abs=5e-6)
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-4)


def test_a_checkpoint_goes_on_in_another_layout(data: Path, base: Path, tmp_path: Path, alone: Any) -> None:
    sp = {**TP2, "sequence_parallel": True}
    run_ranks(2, _train, _config(data, base, tmp_path, sp, **{"checkpoint.save_interval": 2}))
    chosen = {"checkpoint.start_from": "null", "checkpoint.resume": tmp_path / "checkpoints" / "step-00000002"}
    (losses, _, _) = run_ranks(1, _steps, _config(data, base, tmp_path / "on", **chosen), 1)[0]
    assert losses[0]["loss"] == pytest.approx(alone[0][2]["loss"], abs=5e-6)
