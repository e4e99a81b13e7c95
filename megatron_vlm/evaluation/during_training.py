"""Tasks answered while a run trains, by the model as it stands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import ConfigError
from megatron_vlm.evaluation.questions import read_questions
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.evaluation.suite import run_tasks
from megatron_vlm.evaluation.task import Task, load_task, task_files
from megatron_vlm.evaluation.task_pictures import Control
from megatron_vlm.training.loop import Run
from megatron_vlm.training.validation import trained_shape


class TaskMeasure:
    """Answers a run's `evaluation.tasks`; given to `training.loop.Run`, which asks for it.

    Raises:
        ConfigError: a task's file or `evaluation.limit` is wrong, or tasks cannot be answered in the layout of the training.
        DataError: questions that cannot be read: better now than after a thousand steps.
    """

    def __init__(self, config: RunConfig) -> None:
        chosen = config.evaluation
        self.controls: tuple[Control, ...] = ("seen", *dict.fromkeys(chosen.controls))
        self.limit = chosen.limit
        if self.limit < 0:
            raise ConfigError(f"evaluation.limit: {self.limit} must be at least 0 (0: all questions)")
        self.tasks: list[Task] = [load_task(path) for path in task_files([Path(place) for place in chosen.tasks])]
        for task in self.tasks:
            read_questions(task)
        generated = [task.name for task in self.tasks if not task.by_likelihood]
        parallel = config.parallel
        if generated and (parallel.sequence_parallel or parallel.virtual_pipeline_model_parallel_size > 1):
            raise ConfigError(
                f"evaluation.tasks: {', '.join(generated)} would be answered by generation, which a layout with "
                f"sequence_parallel or interleaved stages cannot do; leave them to `megatron-vlm evaluate` on checkpoints"
            )

    def __call__(self, run: Run) -> Iterator[tuple[str, float]]:
        """Name and value of every score and figure, on all ranks."""
        shape = trained_shape(run.config, run.step)
        scorer = Scorer(run.config, run.engine, run.topology, run.tokenizer, shape, run.step)
        for score in run_tasks(scorer, self.tasks, self.controls, self.limit):
            name = score.task if score.control == "seen" else f"{score.task}/{score.control}"
            yield name, score.score.mean
            yield from ((f"{name}/{figure}", value) for figure, value in score.figures.items())
