"""What an evaluation asks, as a map that changes when a question, a picture or a held-out document does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.sources.opening import expand_inputs, is_remote
from megatron_vlm.errors import ConfigError, DataError
from megatron_vlm.evaluation.task import load_task, task_files
from megatron_vlm.study.study_file import EvaluateConfig

#: a file's path, size and time of modification
Stamp = tuple[str, int, str]


def asked(evaluate: EvaluateConfig) -> dict[str, Any]:
    """All but the held-out documents, which are of a run's configuration. What is not there yet is told by its path.

    Raises:
        ConfigError: a task that is not there, or is none.
    """
    told = {**vars(evaluate), "before_finetune": None}
    told["tasks"] = [_task(file) for file in task_files([Path(task) for task in evaluate.tasks])]
    told["naming"] = {name: _pictures(pattern) for name, pattern in evaluate.naming.items()}
    return told


def held_out(config: RunConfig, identity: Callable[[str], str]) -> dict[str, str]:
    """Validation sources by what is in them."""
    return {name: identity(prefix) for name, prefix in config.data.validation.items()}


def _task(file: Path) -> dict[str, Any]:
    task = load_task(file)
    return {
        "task": _content(str(file)),
        "data": _content(task.data),
        "annotations": _content(task.annotations),
        "pictures": _pictures(task.pictures),
    }


def _content(file: str) -> str:
    """The hash of a file; its name where it is not there."""
    if not Path(file).is_file():
        return file
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"evaluate.tasks: {file}: cannot be read: {error.strerror}") from None


def _pictures(place: str) -> str | list[Stamp]:
    """Files of a folder, or those that a name or pattern of tars means. They are not read: sets of pictures are large."""
    if not place or is_remote(place):
        return place
    if Path(place).is_dir():
        return [_stamp(file) for file in sorted(Path(place).rglob("*")) if file.is_file()]
    try:
        return [(file.url, file.size, file.stamp) for file in expand_inputs([place])]
    except DataError:
        return place


def _stamp(file: Path) -> Stamp:
    status = file.stat()
    return str(file), status.st_size, str(status.st_mtime_ns)
