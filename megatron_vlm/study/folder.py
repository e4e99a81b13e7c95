"""What of a study is done, told from its folder alone: nothing else is kept, so nothing can disagree with it.

segments/KIND-KEY/config.yaml   what the segment is
                  run/          the trainer's folder: checkpoints, metrics.jsonl
                  results.json  of an evaluation
                  log.txt       what its process said, attempt after attempt
                  running.json  while one runs
                  failed.json   after the last attempt failed
                  done.json     written last
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from megatron_vlm.data import atomic_file
from megatron_vlm.errors import UserError
from megatron_vlm.study.segments import Segment

State = Literal["done", "running", "failed", "interrupted", "waiting"]


class StudyFolder:
    """The folder of one study."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, segment: Segment) -> Path:
        return self.root / "segments" / segment.folder_name

    def run(self, segment: Segment) -> Path:
        """The trainer's folder of a segment."""
        return self.of(segment) / "run"

    def results(self, segment: Segment) -> Path:
        return self.of(segment) / "results.json"

    def metrics(self, segment: Segment) -> Path:
        return self.run(segment) / "metrics.jsonl"

    def is_done(self, segment: Segment) -> bool:
        return (self.of(segment) / "done.json").is_file()

    def state(self, segment: Segment) -> State:
        folder = self.of(segment)
        if (folder / "done.json").is_file():
            return "done"
        running = read_json(folder / "running.json")
        if running is not None and _alive(running):
            return "running"
        if (folder / "failed.json").is_file():
            return "failed"
        return "interrupted" if running is not None or self.checkpoint(segment) is not None else "waiting"

    def checkpoint(self, segment: Segment) -> Path | None:
        """The newest checkpoint of a segment that was begun."""
        folder = self.run(segment) / "checkpoints"
        found = sorted(folder.glob("step-*")) if folder.is_dir() else []
        return found[-1] if found else None

    def begin(self, segment: Segment, config: str, attempt: int, pid: int) -> None:
        folder = self.of(segment)
        atomic_file.write_text(folder / "config.yaml", config)
        told = {"pid": pid, "started": time.time(), "attempt": attempt, "begun": _process_start(pid)}
        atomic_file.write_text(folder / "running.json", json.dumps(told) + "\n")

    def finish(self, segment: Segment, seconds: float) -> None:
        told = {"key": segment.key, "kind": segment.kind, "name": segment.name, "seconds": seconds}
        told |= {"finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "end_step": segment.end_step}
        (self.of(segment) / "failed.json").unlink(missing_ok=True)
        atomic_file.write_text(self.of(segment) / "done.json", json.dumps(told, indent=2) + "\n")
        self.stop(segment)

    def fail(self, segment: Segment, exit_code: int, attempts: int) -> None:
        told = {"exit_code": exit_code, "attempts": attempts, "said": last_lines(self.of(segment) / "log.txt")}
        atomic_file.write_text(self.of(segment) / "failed.json", json.dumps(told, indent=2) + "\n")
        self.stop(segment)

    def stop(self, segment: Segment) -> None:
        """Nothing runs there any more."""
        (self.of(segment) / "running.json").unlink(missing_ok=True)

    def step(self, segment: Segment) -> int | None:
        """The last step that the segment's run has told of."""
        record = last_record(self.metrics(segment))
        return None if record is None else int(record.get("step", 0)) + 1

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Held by the one process that runs the study.

        Raises UserError where another holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / "lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.root}: another `study run` is at work there; wait for it, or end it") from None
            yield


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a metrics.jsonl; a last one that was cut off is left out."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            yield record


def last_record(path: Path) -> dict[str, Any] | None:
    """The last step of a metrics.jsonl, from its end."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("kind") == "train":
            return record
    return None


def last_lines(path: Path, count: int = 12) -> list[str]:
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 16384))
        return file.read().decode(errors="replace").splitlines()[-count:]


def _alive(running: dict[str, Any]) -> bool:
    """Whether the process that began it is still there, and not another of its number."""
    start = _process_start(int(running.get("pid", 0)))
    return start is not None and start == running.get("begun")


def _process_start(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return "unknown"
