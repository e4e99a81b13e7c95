"""Tasks of lm-evaluation-harness on a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from megatron_vlm.errors import UserError
from megatron_vlm.evaluation.scorer import Scorer


def require_harness() -> None:
    """Raises UserError where the harness is not installed."""
    if find_spec("lm_eval") is None:
        raise UserError("--harness lm-eval needs lm-evaluation-harness, which is not installed: pip install lm-eval")


def run_lm_eval(
    scorer: Scorer, tasks: Sequence[str], include: Path | None = None, few_shot: int | None = None, limit: int = 0
) -> dict[str, Any]:
    """Results as the harness gives them (`results`, `versions`, `n-samples`, ...). Every rank calls it.

    Args:
        tasks: names that the harness knows.
        include: a folder of task files of one's own.
        few_shot: examples before each question; None: as each task says.
        limit: questions of each task at most; 0: all.

    Raises:
        UserError: the harness is missing, or knows a task by no such name.
    """
    require_harness()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from megatron_vlm.evaluation.harness.lm_eval_model import HarnessModel

    manager = TaskManager(include_path=str(include) if include else None)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise UserError(f"lm-evaluation-harness has no task {', '.join(unknown)}; `lm-eval ls tasks` lists them")
    found = simple_evaluate(
        model=HarnessModel(scorer),
        tasks=list(tasks),
        task_manager=manager,
        num_fewshot=few_shot,
        limit=limit or None,
        log_samples=False,
        verbosity="WARNING",
    )
    return dict(found or {})


def harness_table(results: dict[str, Any]) -> str:
    """The harness's own table."""
    from lm_eval.utils import make_table

    return str(make_table(results))
