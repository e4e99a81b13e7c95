"""Tasks that are answered by likelihood: which of the answers on offer does the model find likeliest?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.prompts import Choice, Shots, choices_of, preface, segment_of, split_ids
from megatron_vlm.evaluation.questions import Question
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.evaluation.task import Task
from megatron_vlm.evaluation.task_pictures import TaskPictures
from megatron_vlm.training.scoring import Scored, rows_of

#: questions whose documents are made and scored together
_BLOCK = 256


@dataclass(frozen=True)
class Likelihoods:
    """Of one question: of each of its c choices, float64[c].

    Attributes:
        log_likelihood: of the answer's tokens, in nats.
        tokens, text_bytes: of the answer, without the white space before it for the bytes.
        greedy: whether every token of it is the likeliest at its place.
        unconditional: log-likelihood of the answer without the question; zeros where the task does not ask for it.
    """

    log_likelihood: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    text_bytes: npt.NDArray[np.float64]
    greedy: npt.NDArray[np.bool_]
    unconditional: npt.NDArray[np.float64]

    def chosen(self, task: Task) -> int:
        """Number of the likeliest choice by the task's rule; the first of equals."""
        values = {
            "none": self.log_likelihood,
            "tokens": self.log_likelihood / self.tokens,
            "bytes": self.log_likelihood / np.maximum(1.0, self.text_bytes),
            "unconditional": self.log_likelihood - self.unconditional,
        }[task.normalise]
        return int(values.argmax())


def likelihoods(
    task: Task, scorer: Scorer, questions: Sequence[Question], pictures: TaskPictures, shown: Sequence[Question]
) -> Iterator[Likelihoods]:
    """Of each question in order.

    Args:
        questions: of the task, all of them: examples are drawn from them.
        shown: those to answer, with the pictures that a control gives them.

    Raises:
        DataError: a question whose answer does not fit the model's rows, and as `TaskPictures`.
    """
    shots = Shots(task, questions)
    for start in range(0, len(shown), _BLOCK):
        block = shown[start : start + _BLOCK]
        offered = [choices_of(task, question, preface(task, shots.of(question))) for question in block]
        documents: list[Scored] = []
        for number, (question, choices, seen) in enumerate(zip(block, offered, pictures.of(block), strict=True)):
            documents += [_document(task, scorer, question, choice, seen, number) for choice in choices]
        scores = scorer.score(documents, greedy=True)
        without = np.zeros(len(documents))
        if task.normalise == "unconditional":
            alone = [_document(task, scorer, None, Choice("", c.answer), ()) for choices in offered for c in choices]
            without = -scorer.score(alone)[:, 0]
        at = 0
        for choices in offered:
            part = slice(at, at + len(choices))
            at += len(choices)
            yield Likelihoods(
                log_likelihood=-scores[part, 0],
                tokens=scores[part, 1],
                text_bytes=np.array([len(choice.answer.strip().encode()) for choice in choices], np.float64),
                greedy=scores[part, 2] == scores[part, 1],
                unconditional=without[part],
            )


def _document(
    task: Task,
    scorer: Scorer,
    question: Question | None,
    choice: Choice,
    seen: tuple[npt.NDArray[np.uint8], ...],
    family: int | None = None,
) -> Scored:
    before, answer = split_ids(scorer.tokenizer, choice)
    rows = rows_of(scorer.shape, seen, 1) if question is not None and question.picture else 0
    try:
        segment = segment_of(scorer.tokenizer, before, answer, rows, scorer.shape.sequence_length)
    except ValueError as error:
        key = question.key if question is not None else ""
        raise DataError(f"task {task.name}, question {key}: {error}; raise data.sequence_length") from None
    return Scored(segment, seen, family)
