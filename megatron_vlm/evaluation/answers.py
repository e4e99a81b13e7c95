"""What a free answer is worth: one number a question, between 0 and 1."""

from __future__ import annotations

import re

from megatron_vlm.evaluation.boxes import intersection_over_union, read_box
from megatron_vlm.evaluation.questions import Question
from megatron_vlm.evaluation.task import Task
from megatron_vlm.evaluation.vqa_answers import normalised_answer, vqa_accuracy
from megatron_vlm.evaluation.yes_no import read_label, read_yes_no

_NUMBER = re.compile(r"\d+")


def read_number(text: str) -> int | None:
    """The first whole number of an answer, in digits or as a word up to ten; None without any."""
    found = _NUMBER.search(normalised_answer(text))
    return int(found.group()) if found else None


def value_of(task: Task, question: Question, text: str) -> float:
    """How right `text` is, by the task's metric.

    exact: 1 where it equals one of the answers after VQA's normalisation (GQA). vqa: `vqa_accuracy`. number: 1 where the
    first number is that of an answer (TallyQA). yes_no: 1 where it is read as the label is. box: 1 where the overlap is at
    least `task.overlap`. Captions are scored together (`captioning.py`).

    Raises:
        ValueError: a metric that does not score single answers.
    """
    metric = task.measured_by
    if metric == "vqa":
        return vqa_accuracy(text, question.answers)
    if metric == "exact":
        return float(normalised_answer(text) in {normalised_answer(answer) for answer in question.answers})
    if metric == "number":
        number = read_number(text)
        return float(number is not None and number in {read_number(answer) for answer in question.answers})
    if metric == "yes_no":
        return float(read_yes_no(text) == (read_label(question.answers[0]) == "yes"))
    if metric == "box":
        box = read_box(text, task.box_scale)
        assert question.box is not None
        return float(box is not None and intersection_over_union(box, question.box) >= task.overlap)
    raise ValueError(f"{metric} does not score answers one by one")
