"""A run that is ended by its data is measured and saved at its last step as one that is ended by its length, and once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.config.run import RunConfig
from megatron_vlm.training.checkpoint.saver import Saver
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration

pytestmark = pytest.mark.distributed


def _configuration(folder: Path, data: Path, interval: int) -> RunConfig:
    """Of 40 steps, for which there are captions for three or four."""
    return configuration(
        data,
        **{
            "logging.directory": folder,
            "logging.eval_interval": interval,
            "evaluation.interval": interval,
            "checkpoint.save_interval": interval,
            "data.validation": f"{{text: '{data / 'text'}'}}",
            "data.validation_documents": 2,
            "schedule.train_steps": 40,
            "curriculum.stages": "[{sources: {captions: 1.0}}]",
            "curriculum.max_epochs": "{captions: 0.15}",
        },
    )


def _train(config: RunConfig) -> tuple[int, int, list[int], str]:
    """Exit code, steps, the steps that were saved, the last checkpoint."""
    saved: list[int] = []
    save = Saver.save

    def counted(self: Saver, engine: Any, step: int, *rest: Any) -> None:
        saved.append(step)
        save(self, engine, step, *rest)

    Saver.save = counted  # type: ignore[method-assign]
    outcome = Run(config, lambda run: [("answer", float(run.step))]).train()
    return outcome.exit_code, outcome.step, saved, str(outcome.checkpoint)


def _steps(folder: Path, kind: str) -> list[int]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [record["step"] for record in records if record["kind"] == kind]


@pytest.mark.parametrize("interval", [1, 30])
def test_the_last_step_is_measured_and_saved_once(interval: int, data: Path, tmp_path: Path) -> None:
    """Whether or not it is one of those that are anyway."""
    config = _configuration(tmp_path, data, interval)
    results = run_ranks(2 if interval == 1 else 1, _train, config)
    code, last, saved, checkpoint = results[0]
    assert (code, 1 < last < 30) == (0, True)
    expected = list(range(1, last + 1)) if interval == 1 else [last]
    assert saved == expected
    assert _steps(tmp_path, "eval") == _steps(tmp_path, "tasks") == [0, *expected]
    assert checkpoint == str(tmp_path / "checkpoints" / f"step-{last:08d}")
    assert Path(checkpoint).is_dir(), "on disk when the run ends"
