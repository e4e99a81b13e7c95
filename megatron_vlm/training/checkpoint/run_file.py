"""run.json of a checkpoint: the step, the data position, the configuration, and what they tell a reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_vlm.config.loading import from_map
from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import DataError
from megatron_vlm.training.checkpoint.checksums import content_damage
from megatron_vlm.training.checkpoint.folders import RUN_FILE, find_checkpoint


def read_run_file(checkpoint: Path) -> dict[str, Any]:
    """Raises DataError when `checkpoint` is no whole checkpoint."""
    try:
        return json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{checkpoint / RUN_FILE}: cannot be read ({error}); take an earlier checkpoint") from None


def checkpoint_config(checkpoint: Path) -> RunConfig:
    """The configuration that the checkpoint was trained with."""
    return from_map(read_run_file(checkpoint)["config"])


def describe_checkpoint(checkpoint: Path, verify: bool = False) -> str:
    """A printable summary, for `megatron-vlm inspect`.

    Raises DataError when the folder is no checkpoint, or, with `verify`, when a file does not have its checksum.
    """
    checkpoint = find_checkpoint(checkpoint)
    run = read_run_file(checkpoint)
    config = from_map(run["config"])
    size = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    stage = config.curriculum.stages[run["stage"]].name
    lines = [
        f"checkpoint  {checkpoint}",
        f"step        {run['step']} of {config.total_steps}, stage {stage!r}",
        f"written by  megatron-vlm {run['version']}, "
        f"TP {config.parallel.tensor_model_parallel_size} x PP {config.parallel.pipeline_model_parallel_size}"
        f"{f' x CP {cp}' if (cp := config.parallel.context_parallel_size) > 1 else ''}",
        f"size        {size / 1e6:.1f} MB",
    ]
    if verify:
        problems = content_damage(checkpoint)
        if problems:
            raise DataError(f"{checkpoint} is damaged:\n" + "\n".join(f"  - {line}" for line in problems))
        lines.append("checksums   every file is as it was written")
    lines += [f"{'data':<12}{line}" for line in _flat(run["data"])]
    return "\n".join(lines)


def _flat(value: Any, path: str = "") -> Iterator[str]:
    """The planner's state, whatever its keys: a line for the plain values of each map."""
    if not isinstance(value, dict):
        yield f"{path}: {_shown(value)}"
        return
    plain = {key: item for key, item in value.items() if not isinstance(item, dict)}
    if plain:
        yield (f"{path}: " if path else "") + ", ".join(f"{key} {_shown(item)}" for key, item in plain.items())
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{path}.{key}" if path else str(key))


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value[:8]) + (", ...]" if len(value) > 8 else "]")
    return str(value)
