"""Checkpoints: another layout goes on with the same losses, the same layout with the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from megatron_vlm.training import checkpoint as checkpoints
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import (
    PP2,
    TP2,
    configuration,
    steps,
    steps_and_parameters,
    steps_and_save,
)

pytestmark = pytest.mark.distributed


def _spans(config: Any) -> list[Any]:
    run = Run(config)
    run._start()
    plan = run.data.planner.plan_step()
    assert plan is not None
    return [[(s.source, s.document, s.start, s.length) for s in pack] for pack in plan.packs]


@pytest.mark.parametrize(
    ("stopped_at", "layout"),  # before, at and after the border where pictures enter
    [(1, {}), (2, {}), (3, {}), (3, {"use_distributed_optimizer": False})],
)
def test_resumed_bits_equal_the_uninterrupted_run(
    stopped_at: int, layout: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    whole = run_ranks(2, steps_and_parameters, configuration(data, layout, **{"logging.directory": tmp_path / "whole"}), 5)
    folder = {"logging.directory": tmp_path / "cut"}
    first = run_ranks(2, steps_and_save, configuration(data, layout, **folder), stopped_at)
    rest = run_ranks(
        2, steps_and_parameters, configuration(data, layout, **folder, **{"checkpoint.resume": "auto"}), 5 - stopped_at
    )
    for rank in range(2):
        assert first[rank][0] + rest[rank][0] == whole[rank][0]
        for name, value in whole[rank][1].items():
            assert np.array_equal(rest[rank][1][name], value), name


@pytest.mark.parametrize("distributed", [True, False])
def test_a_run_goes_on_at_another_learning_rate(distributed: bool, data: Path, tmp_path: Path) -> None:
    """megatron-core 0.19 knows the groups of a checkpoint by their learning rates, which are the run's own here."""
    layout = {"use_distributed_optimizer": distributed}
    folder = {"logging.directory": tmp_path}
    run_ranks(1, steps_and_save, configuration(data, layout, **folder), 1)
    other = {**folder, "checkpoint.resume": "auto", "schedule.lr": 1e-4, "schedule.min_lr": 1e-5}
    assert run_ranks(1, steps, configuration(data, layout, **other), 1)[0][0]["loss"] > 0


@pytest.mark.parametrize("target", [PP2, {**PP2, "virtual_pipeline_model_parallel_size": 2}, {}])
def test_tp2_checkpoint_goes_on_elsewhere(target: dict[str, Any], data: Path, tmp_path: Path) -> None:
    """TP2 x PP1 saved at step 3; its losses of steps 3 and 4 in another layout (DP2 for {}), to 1e-5."""
    folder = {"logging.directory": tmp_path}
    run_ranks(2, steps_and_save, configuration(data, TP2, **folder), 3)
    again = {**folder, "checkpoint.resume": "auto"}
    expected = run_ranks(2, steps, configuration(data, TP2, **again), 2)[0]
    moved = run_ranks(2, steps, configuration(data, target, **again), 2)[0]
    for ours, theirs in zip(moved, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)


def test_documents_after_a_resume_do_not_depend_on_the_layout(data: Path, tmp_path: Path) -> None:
    folder = {"logging.directory": tmp_path}
    run_ranks(1, steps_and_save, configuration(data, **folder), 3)
    again = {**folder, "checkpoint.resume": "auto"}
    alone = run_ranks(1, _spans, configuration(data, **again))
    shared = run_ranks(4, _spans, configuration(data, TP2, **again))
    assert all(spans == alone[0] for spans in shared)


def test_half_a_checkpoint_is_passed_over_and_an_old_run_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    config = configuration(data, **{"logging.directory": tmp_path})
    run_ranks(1, steps_and_save, config, 1)
    folder = checkpoints.checkpoint_folder(config)
    whole = checkpoints.find_checkpoint(tmp_path)
    shutil.copytree(whole, folder / "step-00000004")
    (folder / "step-00000004" / checkpoints.RUN_FILE).write_text("{")
    (folder / ".step-00000005.partial").mkdir()
    assert checkpoints.find_checkpoint(tmp_path) == whole
    with pytest.raises(AssertionError, match="already holds checkpoints"):
        run_ranks(1, steps, config, 1)


def test_a_checkpoint_of_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    folder = {"logging.directory": tmp_path}
    run_ranks(1, steps_and_save, configuration(data, **folder), 1)
    other = configuration(data, **folder, **{"checkpoint.resume": "auto", "model.language.num_layers": 6})
    with pytest.raises(AssertionError, match="DataError.*does not fit this model"):
        run_ranks(1, steps, other, 1)


def _save_thrice(config: Any) -> list[str]:
    run = Run(config)
    run._start()
    for _ in range(3):
        run.save()
        run.step += 1
    return [child.name() for child in psutil.Process().children(recursive=True)]


def test_saves_leave_no_process_and_no_more_folders_than_asked(data: Path, tmp_path: Path) -> None:
    config = configuration(data, **{"logging.directory": tmp_path, "checkpoint.keep_last": 2})
    assert run_ranks(2, _save_thrice, config) == [[], []]
    folder = checkpoints.checkpoint_folder(config)
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-00000001", "step-00000002"]
    assert (folder / "latest").read_text() == "step-00000002\n"


@pytest.mark.parametrize(
    ("parallel", "fields", "message"),
    [
        (
            {"use_distributed_optimizer": False},
            {},
            "was saved with parallel.use_distributed_optimizer True and loads only so",
        ),
        ({}, {"model.projector": "{kind: mlp3}"}, "does not fit this model"),
        ({}, {"model.vision": "{num_layers: 2, hidden_size: 32}"}, "does not fit this model"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    parallel: dict[str, Any], fields: dict[str, Any], message: str, data: Path, tmp_path: Path
) -> None:
    run_ranks(1, steps_and_save, configuration(data, **{"logging.directory": tmp_path}), 1)
    again = {"logging.directory": tmp_path, "checkpoint.resume": "auto", **fields}
    with pytest.raises(AssertionError, match=message):
        run_ranks(1, steps, configuration(data, parallel, **again), 1)
