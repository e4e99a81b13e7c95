"""Results of an evaluation as a table and as json."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_vlm.data import atomic_file
from megatron_vlm.evaluation.held_out import HeldOut
from megatron_vlm.evaluation.naming import Naming


def as_map(step: int, held_out: dict[str, HeldOut], naming: dict[str, Naming]) -> dict[str, Any]:
    return {
        "step": step,
        "held_out": {name: asdict(value) for name, value in held_out.items()},
        "naming": {name: asdict(value) for name, value in naming.items()},
    }


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
