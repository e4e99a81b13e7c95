"""Several tasks on one checkpoint, under the controls that were asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from megatron_vlm.evaluation.answers import value_of
from megatron_vlm.evaluation.captioning import cider_scores, require_captioning
from megatron_vlm.evaluation.free_answers import free_answers
from megatron_vlm.evaluation.generation import Generator
from megatron_vlm.evaluation.likelihood import likelihoods
from megatron_vlm.evaluation.questions import Question, read_questions
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.evaluation.task import Task
from megatron_vlm.evaluation.task_pictures import Control, TaskPictures, under
from megatron_vlm.evaluation.task_scores import TaskScore, score_of
from megatron_vlm.evaluation.yes_no import read_yes_no

T = TypeVar("T")


def run_tasks(scorer: Scorer, tasks: Sequence[Task], controls: Sequence[Control], limit: int = 0) -> Iterator[TaskScore]:
    """Each task under each control; those without pictures once, as they are.

    Args:
        limit: questions of each task at most (0: all), the first ones of its file; examples are drawn from all of them.
    """
    for task in tasks:
        questions = read_questions(task)
        for control in controls if task.shows_pictures else ("seen",):
            yield run_task(scorer, task, questions, control, limit)


def run_task(
    scorer: Scorer, task: Task, questions: Sequence[Question], control: Control = "seen", limit: int = 0
) -> TaskScore:
    """One task, with a progress bar on rank 0.

    Args:
        questions: of the task, all of them.
        limit: how many of them are answered, the first ones; 0: all. What is put to the model for one does not depend on it.
    """
    shown = under(control, questions)[: limit or None]
    pictures = TaskPictures(task, scorer)
    if task.by_likelihood:
        return _by_likelihood(scorer, task, questions, shown, pictures, control)
    if task.measured_by == "cider":
        require_captioning()
    answered = free_answers(task, Generator(scorer), questions, pictures, shown)
    texts = list(_bar(scorer, task, control, answered, len(shown)))
    if task.measured_by == "cider":
        return score_of(task, control, shown, cider_scores(texts, [question.answers for question in shown]), texts=texts)
    values = [value_of(task, question, text) for question, text in zip(shown, texts, strict=True)]
    said_yes = [read_yes_no(text) for text in texts] if task.form == "pope" else None
    return score_of(task, control, shown, values, said_yes, texts)


def _bar(scorer: Scorer, task: Task, control: Control, answered: Iterable[T], count: int) -> Iterable[T]:
    name = task.name if control == "seen" else f"{task.name}, {control}"
    return tqdm(answered, name, count, unit=" questions", disable=None if scorer.topology.rank == 0 else True)


def _by_likelihood(
    scorer: Scorer,
    task: Task,
    questions: Sequence[Question],
    shown: Sequence[Question],
    pictures: TaskPictures,
    control: Control,
) -> TaskScore:
    answered = _bar(scorer, task, control, likelihoods(task, scorer, questions, pictures, shown), len(shown))
    if task.measured_by == "exact_tokens":
        return score_of(task, control, shown, [float(found.greedy[0]) for found in answered])
    chosen = [found.chosen(task) for found in answered]
    values = [float(choice == question.gold) for choice, question in zip(chosen, shown, strict=True)]
    said_yes = [choice == 0 for choice in chosen] if task.measured_by == "yes_no" else None
    return score_of(task, control, shown, values, said_yes)
