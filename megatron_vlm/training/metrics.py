"""What a run reports: metrics.jsonl (a line a step), TensorBoard, and a progress line."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from megatron_vlm.data import atomic_file

#: kinds of records whose step is updates made: those of a checkpoint's step are of before it, and do not come again
_MADE_BEFORE = ("eval", "tasks", "speed")


class MetricsLog:
    """Appends records to `metrics.jsonl`; on resume, records from `first_step` on are cut off, since they come again."""

    def __init__(self, folder: Path, first_step: int, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = self._cut(first_step)
        self._file: TextIO = self.path.open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step or None)
            for record in kept:
                self._show(record)  # the board forgets all of the step

    def _cut(self, first_step: int) -> list[dict[str, Any]]:
        """Returns the records of `first_step` that stay."""
        if not self.path.exists():
            return []
        lines, of_the_step = [], []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the half line of a run that was killed
            step = record.get("step", 0)
            if record.get("kind") in _MADE_BEFORE and step == first_step > 0:
                of_the_step.append(record)
            elif step >= first_step:
                continue
            lines.append(line + "\n")
        atomic_file.write_text(self.path, "".join(lines))
        return of_the_step

    def write(self, record: dict[str, Any]) -> None:
        """`record` has `step` (updates made before it, from 0), `kind` and numbers; nested maps become board paths."""
        self._file.write(json.dumps(_plain(record), allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            self._show(record)

    def _show(self, record: dict[str, Any]) -> None:
        for name, value in _flat(record):
            if name not in ("step", "kind"):
                self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def _plain(value: Any) -> Any:
    """Numbers that JSON has no word for, those of a bad step, become null."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(record: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for key, value in record.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            pairs.append((f"{prefix}{key}", float(value)))
    return pairs


def human(value: float, unit: str = "") -> str:
    """1234567 -> '1.23M'."""
    for size, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}{unit}"
    return f"{value:.3g}{unit}"


def duration(seconds: float) -> str:
    seconds = int(seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


class Progress:
    """Counts positions, operations and waiting since the last line, and prints the line."""

    def __init__(self, total_steps: int, peak_flops: float | None, ranks: int, out: TextIO | None = None) -> None:
        self.total_steps, self.peak, self.ranks = total_steps, peak_flops, ranks
        self.out = out or sys.stdout
        self._since = time.perf_counter()
        self._spent = 0.0
        self._steps = self._positions = self._flops = 0
        self._waited = 0.0

    def add(self, positions: int, flops: int, waited: float) -> None:
        self._steps += 1
        self._positions += positions
        self._flops += flops
        self._waited += waited

    def restart(self) -> None:
        """Begin a new interval, so that evaluation and saves are not counted as training."""
        self._spent += time.perf_counter() - self._since
        self._since = time.perf_counter()

    def pause(self) -> float:
        """Stop the clock; returns the seconds of the interval so far. `unpause` goes on."""
        self._spent += time.perf_counter() - self._since
        return self._spent

    def unpause(self) -> None:
        self._since = time.perf_counter()

    def rates(self) -> dict[str, float]:
        """Per second over the interval, then a new one begins: positions, model operations, share of waiting for data."""
        seconds = max(1e-9, self._spent + time.perf_counter() - self._since)
        values = {
            "tokens_per_second": self._positions / seconds,
            "model_flops_per_second": self._flops / seconds,
            "seconds_per_step": seconds / max(1, self._steps),
            "data_wait_share": self._waited / seconds,
        }
        if self.peak:
            values["model_flops_utilisation"] = values["model_flops_per_second"] / (self.peak * self.ranks)
        self._since, self._spent = time.perf_counter(), 0.0
        self._steps = self._positions = self._flops = 0
        self._waited = 0.0
        return values

    def line(self, step: int, stage: str, losses: dict[str, float], rate: dict[str, float], lr: float, norm: float) -> None:
        """`step` counts from 1 here: updates made."""
        eta = (self.total_steps - step) * rate["seconds_per_step"]
        parts = [
            f"step {step}/{self.total_steps}",
            stage,
            " ".join(f"{k} {v:.3f}" for k, v in losses.items()),
        ]
        parts += [f"lr {lr:.2e}", f"grad {norm:.2f}", f"{human(rate['tokens_per_second'])} tokens/s"]
        parts.append(human(rate["model_flops_per_second"], "FLOP/s"))
        if "model_flops_utilisation" in rate:
            parts.append(f"MFU {rate['model_flops_utilisation']:.1%}")
        parts.append(f"ETA {duration(eta)}")
        print(" | ".join(parts), file=self.out, flush=True)
