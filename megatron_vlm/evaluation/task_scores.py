"""Results of tasks: the score and how sure it is, by split, above chance, and averaged as the paper does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.questions import Question
from megatron_vlm.evaluation.statistics import Difference, Interval, bootstrap_interval, paired_difference
from megatron_vlm.evaluation.task import Task
from megatron_vlm.evaluation.task_pictures import Control
from megatron_vlm.evaluation.yes_no import yes_no_figures


@dataclass(frozen=True)
class TaskScore:
    """A task under one control.

    Attributes:
        score: mean over the questions of what their answers are worth, with its interval.
        chance: what guessing gets.
        figures: what else the metric has: precision, recall, f1 and yes_share of yes-no questions.
        splits: mean by the value of the field that the task splits by.
        keys, values: of each question, for comparisons.
        answers: what was generated for each, where answers are free.
    """

    task: str
    group: str
    metric: str
    control: Control
    score: Interval
    chance: float
    figures: dict[str, float] = field(default_factory=dict)
    splits: dict[str, float] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def above_chance(self) -> float:
        return self.score.mean - self.chance


def score_of(
    task: Task,
    control: Control,
    questions: Sequence[Question],
    values: Sequence[float],
    said_yes: Sequence[bool] | None = None,
    texts: Sequence[str] = (),
) -> TaskScore:
    """Put together what each question's answer was worth.

    `said_yes`: of yes-no questions, the answers. The interval takes questions as drawn at random.
    """
    array: npt.NDArray[np.float64] = np.array(values, np.float64)
    by_split: dict[str, list[float]] = {}
    for question, value in zip(questions, values, strict=True):
        if question.split:
            by_split.setdefault(question.split, []).append(value)
    figures = {}
    if said_yes is not None:
        figures = asdict(yes_no_figures(said_yes, [question.gold == 0 for question in questions]))
    return TaskScore(
        task=task.name,
        group=task.group,
        metric=task.measured_by,
        control=control,
        score=bootstrap_interval(array),
        chance=chance_of(task, questions),
        figures=figures,
        splits={name: float(np.mean(parts)) for name, parts in sorted(by_split.items())},
        keys=tuple(question.key for question in questions),
        values=tuple(array.tolist()),
        answers=tuple(texts),
    )


def chance_of(task: Task, questions: Sequence[Question]) -> float:
    """The task's own baseline, else one over the choices on average; 0 for answers that are not chosen from any."""
    if task.chance is not None:
        return task.chance
    offered = [max(len(question.choices), len(question.contexts)) for question in questions]
    return float(np.mean([1 / count if count > 1 else 0.0 for count in offered]))


def stable_score(scores: Sequence[TaskScore]) -> float:
    """Mean over tasks of the score above chance: the paper's "stable score" (arXiv 2503.07603). NaN without tasks."""
    return float(np.mean([score.above_chance for score in scores])) if scores else float("nan")


def average(scores: Mapping[str, float]) -> float:
    """Plain mean over tasks, as the paper's six-task average; scores above 1 are taken for per cents."""
    return float(np.mean([value / 100 if value > 1 else value for value in scores.values()]))


def compare(a: TaskScore, b: TaskScore) -> Difference:
    """What `b` scores above `a`, question by question.

    Raises:
        DataError: they are not of the same task, metric and questions.
    """
    if (a.task, a.metric) != (b.task, b.metric):
        raise DataError(f"{a.task} by {a.metric} and {b.task} by {b.metric} are not the same task")
    if a.keys != b.keys:
        shared = len(set(a.keys) & set(b.keys))
        raise DataError(
            f"{a.task}: {len(a.keys)} and {len(b.keys)} questions, of which {shared} are the same; "
            f"evaluate both with the same task files and --limit"
        )
    return paired_difference(np.array(a.values), np.array(b.values))


def as_map(score: TaskScore) -> dict[str, Any]:
    return asdict(score)


def from_map(raw: Mapping[str, Any]) -> TaskScore:
    """What `as_map` made, read back from json."""
    lists = {name: tuple(raw[name]) for name in ("keys", "values", "answers")}
    return TaskScore(**{**raw, "score": Interval(**raw["score"]), **lists})
