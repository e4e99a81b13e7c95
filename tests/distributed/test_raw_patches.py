"""An encoder without layers: patches go to the projector as embedded. Alike in layouts, counted, saved and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.config.checks import problems
from megatron_vlm.planning.flops import language_forward, step_flops
from megatron_vlm.training.loop import Run
from tests.distributed.measured_work import memory, operations
from tests.distributed.ranks import run_ranks
from tests.distributed.test_planned_work import compare
from tests.distributed.tiny_run import PP2, TP2, configuration, steps

pytestmark = pytest.mark.distributed

RAW = {"model.vision.num_layers": 0}


def _to_its_end(config: Any) -> tuple[int, int]:
    outcome = Run(config).train()
    return outcome.exit_code, outcome.step


@pytest.mark.parametrize(("ranks", "layout"), [(2, {**TP2, "sequence_parallel": True}), (2, PP2)], ids=["tp2 + sp", "pp2"])
def test_losses_are_those_of_one_rank(ranks: int, layout: dict[str, Any], data: Path) -> None:
    alone = run_ranks(1, steps, configuration(data, **RAW), 4)[0]
    split = run_ranks(ranks, steps, configuration(data, layout, **RAW), 4)[-1]
    for one, other in zip(alone, split, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=2e-6)
    assert alone[3]["loss"] < alone[2]["loss"]


def test_counts_are_the_engines(data: Path) -> None:
    config = configuration(data, **RAW)
    [(counted, shape, vocab)] = run_ranks(1, operations, config, 2)
    frozen = config.curriculum.stages[config.stage_of(2)].freeze
    unseen = 3 * language_forward(config.model, 0, shape.positions, shape.document_lengths).attention
    assert sum(counted.values()) == step_flops(config.model, vocab, shape, frozen) - unseen
    compare(config, 1, run_ranks(1, memory, config, 2), 2)


def test_a_run_is_saved_and_goes_on(data: Path, tmp_path: Path) -> None:
    fields = {**RAW, "logging.directory": tmp_path, "schedule.train_steps": 4}
    assert run_ranks(1, _to_its_end, configuration(data, **fields, **{"schedule.exit_step": 3})) == [(0, 3)]
    assert run_ranks(2, _to_its_end, configuration(data, TP2, **fields, **{"checkpoint.resume": "auto"})) == [(0, 4)] * 2


def test_less_than_no_layer_is_refused(data: Path) -> None:
    found = problems(configuration(data, **{"model.vision.num_layers": -1}), 1)
    assert found == ["model.vision.num_layers: -1 must be at least 0; 0: patches go to the projector as embedded"]
