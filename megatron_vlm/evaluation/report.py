"""Results of an evaluation as a table and as json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_vlm.data import atomic_file
from megatron_vlm.errors import DataError
from megatron_vlm.evaluation import task_scores
from megatron_vlm.evaluation.held_out import HeldOut
from megatron_vlm.evaluation.naming import Naming
from megatron_vlm.evaluation.task_scores import TaskScore, stable_score


def as_map(
    step: int, held_out: dict[str, HeldOut], naming: dict[str, Naming], scores: Sequence[TaskScore] = ()
) -> dict[str, Any]:
    seen = [score for score in scores if score.control == "seen"]
    groups = sorted({score.group for score in seen if score.group})
    return {
        "step": step,
        "held_out": {name: asdict(value) for name, value in held_out.items()},
        "naming": {name: asdict(value) for name, value in naming.items()},
        "tasks": [task_scores.as_map(score) for score in scores],
        "stable_score": {group: stable_score([score for score in seen if score.group == group]) for group in groups},
    }


def read_scores(path: Path) -> dict[tuple[str, str], TaskScore]:
    """Tasks of a results file by name and control.

    Raises:
        DataError: the file cannot be read, or is not what `write_json` wrote.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        scores = [task_scores.from_map(raw) for raw in found["tasks"]]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the results of `megatron-vlm evaluate --output`: {error!r}") from None
    return {(score.task, score.control): score for score in scores}


def write_json(path: Path, results: dict[str, Any]) -> None:
    atomic_file.write_text(path, json.dumps(results, indent=2) + "\n")


def table(held_out: dict[str, HeldOut], naming: dict[str, Naming]) -> str:
    """A few aligned lines for people. Losses in nats a token."""
    lines = []
    if held_out:
        lines.append(f"{'held out':<18}{'documents':>10}{'loss':>9}{'blind':>9}{'gap':>16}")
        for name, value in held_out.items():
            line = f"{name:<18}{value.documents:>10}{value.loss:>9.3f}"
            if value.blind_gap is not None:
                error = f" ± {value.gap_error:.3f}" if value.gap_error is not None else ""
                line += f"{value.blind_loss:>9.3f}{f'{value.blind_gap:+.3f}{error}':>16}"
            lines.append(line)
    if naming:
        lines.append(f"{'naming, 1 of 4':<18}{'questions':>10}{'right':>9}{'per token':>11}{'calibrated':>12}{'blind':>8}")
        for name, result in naming.items():
            lines.append(
                f"{name:<18}{result.questions:>10}{result.accuracy:>9.1%}{result.per_token:>11.1%}"
                f"{result.calibrated:>12.1%}{result.blind:>8.1%}"
            )
    return "\n".join(lines)
