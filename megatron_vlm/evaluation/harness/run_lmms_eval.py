"""Tasks of lmms-eval on a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_vlm.errors import UserError
from megatron_vlm.evaluation.scorer import Scorer

#: before the names of its tasks, on the command line
PREFIX = "lmms-eval:"


def require_lmms_eval() -> None:
    """Raises UserError where it is not installed."""
    if find_spec("lmms_eval") is None:
        raise UserError(f"--harness {PREFIX}... needs lmms-eval, which is not installed: pip install lmms-eval")


def run_lmms_eval(scorer: Scorer, tasks: Sequence[str], include: Path | None = None, limit: int = 0) -> dict[str, Any]:
    """Results as the harness gives them. Every rank calls it.

    Args:
        tasks: names that the harness knows.
        include: a folder of task files of one's own.
        limit: questions of each task at most; 0: all.

    Raises:
        UserError: the harness is missing, or knows a task by no such name.
    """
    require_lmms_eval()
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from megatron_vlm.evaluation.harness.lmms_eval_model import VisualHarnessModel

    manager = TaskManager(include_path=str(include) if include else None)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise UserError(f"lmms-eval has no task {', '.join(unknown)}; `python -m lmms_eval --tasks list` lists them")
    with _as_one_process():
        found = simple_evaluate(
            model=VisualHarnessModel(scorer),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit or None,
            log_samples=False,
            verbosity="WARNING",
            process_docs_parallel=1,
            force_simple=True,
        )
    return dict(found or {})


@contextmanager
def _as_one_process() -> Iterator[None]:
    """The harness deals questions out to the ranks that torchrun tells of. Ours are ranks of one model: each has to ask the
    same, and the model deals out by itself."""
    told = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    kept = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def lmms_table(results: dict[str, Any]) -> str:
    """The harness's own table."""
    from lmms_eval.utils import make_table

    return str(make_table(results))
