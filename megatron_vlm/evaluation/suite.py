"""Several tasks on one checkpoint, under the controls that were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tqdm import tqdm

from megatron_vlm.evaluation.likelihood import likelihoods
from megatron_vlm.evaluation.questions import Question, read_questions
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.evaluation.task import Task
from megatron_vlm.evaluation.task_pictures import Control, TaskPictures, under
from megatron_vlm.evaluation.task_scores import TaskScore, score_of


def run_tasks(scorer: Scorer, tasks: Sequence[Task], controls: Sequence[Control], limit: int = 0) -> Iterator[TaskScore]:
    """Each task under each control; those without pictures once, as they are.

    Args:
        limit: questions of each task at most (0: all), the first ones of its file.
    """
    for task in tasks:
        questions = read_questions(task)[: limit or None]
        for control in controls if task.shows_pictures else ("seen",):
            yield run_task(scorer, task, questions, control)


def run_task(scorer: Scorer, task: Task, questions: Sequence[Question], control: Control = "seen") -> TaskScore:
    """One task, with a progress bar on rank 0."""
    shown = under(control, questions)
    pictures = TaskPictures(task, scorer)
    name = task.name if control == "seen" else f"{task.name}, {control}"
    answered = likelihoods(task, scorer, questions, pictures, shown)
    bar = tqdm(answered, name, len(shown), unit=" questions", disable=None if scorer.topology.rank == 0 else True)
    if task.measured_by == "exact_tokens":
        return score_of(task, control, shown, [float(found.greedy[0]) for found in bar])
    chosen = [found.chosen(task) for found in bar]
    values = [float(choice == question.gold) for choice, question in zip(chosen, shown, strict=True)]
    said_yes = [choice == 0 for choice in chosen] if task.measured_by == "yes_no" else None
    return score_of(task, control, shown, values, said_yes)
