"""Questions as token ids: examples before them, the answer's own ids marked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from megatron_vlm.evaluation.boxes import box_text
from megatron_vlm.evaluation.questions import Question
from megatron_vlm.evaluation.task import Task
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT, Segment


class Encodes(Protocol):
    """What of a tokenizer is needed here."""

    eod_id: int
    image_token_id: int

    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class Choice:
    """A question with one of its answers: the text before it, and the answer with the white space before it."""

    before: str
    answer: str


class Shots:
    """The examples before each question: others of the task, drawn by hashes of keys, the same in every run."""

    def __init__(self, task: Task, questions: Sequence[Question]) -> None:
        self.task = task
        self._order = sorted(questions, key=lambda question: self._hash("order", question.key)) if task.few_shot else []

    def _hash(self, *parts: str) -> int:
        return int.from_bytes(hashlib.sha256("\0".join((self.task.name, *parts)).encode()).digest()[:8], "big")

    def of(self, question: Question) -> list[Question]:
        """As many as the task asks for, or all others."""
        if not self._order:
            return []
        start, count = self._hash("start", question.key) % len(self._order), min(self.task.few_shot, len(self._order) - 1)
        following = (self._order[(start + step) % len(self._order)] for step in range(len(self._order)))
        others = (other for other in following if other.key != question.key)
        return [next(others) for _ in range(count)]


def preface(task: Task, shots: Sequence[Question]) -> str:
    """The preamble and the examples, each with its right answer."""
    parts = [task.preamble]
    for shot in shots:
        context = shot.contexts[shot.gold if len(shot.contexts) > 1 else 0]
        parts.append(context + task.delimiter + _right_answer(task, shot) + task.example_delimiter)
    return "".join(parts)


def _right_answer(task: Task, shot: Question) -> str:
    if shot.choices:
        return shot.choices[shot.gold if len(shot.choices) > 1 else 0]
    if shot.box is not None:
        return box_text(shot.box, task.box_scale)
    return shot.answers[0] if shot.answers else ""


def choices_of(task: Task, question: Question, before: str) -> list[Choice]:
    """Every way to answer: a context for each, or an answer for each. White space at the border goes with the answer."""
    made = []
    for context in question.contexts:
        for answer in question.choices:
            text = before + context + task.delimiter
            kept = text.rstrip()
            made.append(Choice(kept, text[len(kept) :] + answer))
    return made


def prompt_of(task: Task, question: Question, before: str) -> str:
    """What stands before a free answer."""
    return (before + question.contexts[0] + task.delimiter).rstrip(" ")


def split_ids(tokenizer: Encodes, choice: Choice) -> tuple[list[int], list[int]]:
    """Ids of the text before, and of the answer: those of both encoded together, cut where the first alone ends.

    Where a token reaches over the border, the two are encoded apart.
    """
    before = tokenizer.encode(choice.before) if choice.before else []
    whole = tokenizer.encode(choice.before + choice.answer)
    if whole[: len(before)] == before:
        return before, whole[len(before) :]
    return before, tokenizer.encode(choice.answer)


def segment_of(tokenizer: Encodes, before: Sequence[int], answer: Sequence[int], rows: int, capacity: int) -> Segment:
    """A document of which only the answer is scored: placeholders of the picture, the text before, the answer.

    Args:
        rows: placeholders of its picture, 0 without one.
        capacity: positions at most; the text before loses its beginning where there is no room for it, as is usual.

    Raises:
        ValueError: no room for the answer and the picture.
    """
    room = capacity + 1 - rows - len(answer)
    if room < (0 if rows else 1) or not answer:
        raise ValueError(f"an answer of {len(answer)} tokens and {rows} of a picture do not fit {capacity} positions")
    kept = list(before[max(0, len(before) - room) :])
    # nothing comes before the answer of an empty question: the end of a document does, as it does in a dataset
    lead = [tokenizer.image_token_id] * rows + (kept if kept or rows else [tokenizer.eod_id])
    ids = np.array([*lead, *answer], np.int32)
    return Segment(ids, MODALITY_CAPTION if rows else MODALITY_TEXT, loss_from=len(lead) - 1)
