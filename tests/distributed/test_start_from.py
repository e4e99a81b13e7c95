"""A new run begins with another one's weights, or its moments too; step and data begin anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, configuration, one_step, parameters

pytestmark = pytest.mark.distributed

ALL = "[{name: all, sources: {text: 0.5, captions: 0.5}}]"


def _moments(run: Run) -> dict[str, Any]:
    kept = run.engine.optimizer.inner.optimizer.state.values()
    return {f"{i}.{key}": value.numpy().copy() for i, one in enumerate(kept) for key, value in one.items() if value.dim()}


def _documents(run: Run) -> list[Any]:
    plan = run.data.planner.plan_step()
    assert plan is not None
    return [[(span.source, span.document, span.start) for span in pack] for pack in plan.packs]


def _state(run: Run) -> tuple[dict[str, Any], dict[str, Any], set[int]]:
    counts = {int(group["step"]) for group in run.engine.optimizer.groups if group["params"]}
    return parameters(run), _moments(run), counts


def _train(config: Any, count: int) -> Any:
    run = Run(config)
    run._start()
    for _ in range(count):
        one_step(run)
    run._enter_stage()
    run.save()
    return _state(run)


def _begin(config: Any) -> Any:
    run = Run(config)
    run._start()
    return _state(run), run.step, _documents(run)


def test_weights_alone(data: Path, tmp_path: Path) -> None:
    weights, moments, counts = run_ranks(1, _train, configuration(data, **{"logging.directory": tmp_path / "a"}), 3)[0]
    assert counts == {3}
    new = {"logging.directory": tmp_path / "b", "curriculum.stages": ALL, "schedule.train_steps": 2}
    plain = run_ranks(1, _begin, configuration(data, **new))[0]
    new["checkpoint.start_from"] = tmp_path / "a"
    (ours, cold, counts), step, documents = run_ranks(1, _begin, configuration(data, **new))[0]
    assert step == 0
    assert documents == plain[2]
    assert all(np.array_equal(ours[name], value) for name, value in weights.items())
    assert any((ours[name] != value).any() for name, value in plain[0][0].items())
    assert not any(value.any() for name, value in cold.items() if "exp_avg" in name)
    assert counts == {0}


def test_weights_and_moments_of_another_curriculum(data: Path, tmp_path: Path) -> None:
    """Saved with two stages, under which groups have other labels; begun with one, in the same layout and in another."""
    config = configuration(data, **{"logging.directory": tmp_path / "a"})
    weights, moments, _ = run_ranks(1, _train, config, 3)[0]
    new = {
        "logging.directory": tmp_path / "b",
        "curriculum.stages": ALL,
        "checkpoint.start_from": tmp_path / "a",
        "checkpoint.start_with": "weights_and_optimizer",
    }
    (ours, kept, counts), step, _ = run_ranks(1, _begin, configuration(data, **new))[0]
    assert (step, counts) == (0, {3})
    assert all(np.array_equal(ours[name], value) for name, value in weights.items())
    total = {key: sum(float(np.square(v).sum()) for n, v in moments.items() if n.endswith(key)) for key in ("exp_avg_sq",)}
    again = {key: sum(float(np.square(v).sum()) for n, v in kept.items() if n.endswith(key)) for key in ("exp_avg_sq",)}
    assert total["exp_avg_sq"] > 0
    assert again == pytest.approx(total, rel=1e-12)
    resumed = run_ranks(2, _train, configuration(data, PP2, **new), 1)  # and trains and saves with a count that goes on
    assert [counts for _, _, counts in resumed] == [{4}, {4}]


def test_its_own_checkpoints_go_before_start_from(data: Path, tmp_path: Path) -> None:
    run_ranks(1, _train, configuration(data, **{"logging.directory": tmp_path / "a"}), 1)
    new = {"logging.directory": tmp_path / "b", "checkpoint.start_from": tmp_path / "a", "checkpoint.resume": "auto"}
    weights, _, _ = run_ranks(1, _train, configuration(data, **new), 1)[0]
    (ours, _, _), step, _ = run_ranks(1, _begin, configuration(data, **new))[0]
    assert step == 1
    assert all(np.array_equal(ours[name], value) for name, value in weights.items())


def test_moments_that_were_never_saved_are_not_made_up(data: Path, tmp_path: Path) -> None:
    run_ranks(1, _train, configuration(data, **{"logging.directory": tmp_path / "a"}), 1)
    new = {
        "logging.directory": tmp_path / "b",
        "curriculum.stages": ALL,
        "checkpoint.start_from": tmp_path / "a",
        "checkpoint.start_with": "weights_and_optimizer",
    }
    with pytest.raises(AssertionError, match="has no moments of projector, vision, frozen when it was saved"):
        run_ranks(1, _begin, configuration(data, **new))
