"""The pictures of a task's questions, decoded as the run shows them, and the two controls that exchange or withhold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.decoding.decoder import open_decoder
from megatron_vlm.data.pictures import decode_picture, picture_canvas
from megatron_vlm.data.sources.picture_store import picture_store
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.questions import Question
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.evaluation.task import Task

#: seen: each question with its picture; shuffled: with another question's; blind: without any
Control = Literal["seen", "shuffled", "blind"]


def under(control: Control, questions: Sequence[Question]) -> list[Question]:
    """The questions with the pictures that a control gives them; what they ask stays.

    Shuffled, a question gets the picture of the next one that has another, so that nobody keeps its own where two differ.
    """
    if control == "seen":
        return list(questions)
    if control == "blind":
        return [replace(question, picture="") for question in questions]
    pictured = [number for number, question in enumerate(questions) if question.picture]
    given = list(questions)
    for place, number in enumerate(pictured):
        own = questions[number].picture
        others = (questions[pictured[(place + step) % len(pictured)]].picture for step in range(1, len(pictured)))
        given[number] = replace(questions[number], picture=next((other for other in others if other != own), own))
    return given


class TaskPictures:
    """Decoded pictures of a task by name, a block of questions at a time: a set of them need not fit the memory.

    Raises:
        DataError: no store, a picture that is not in it or does not decode, named with its question.
    """

    def __init__(self, task: Task, scorer: Scorer) -> None:
        self.task, self.scorer = task, scorer
        self._store = picture_store(task.pictures) if task.pictures else None
        if self._store is not None:
            self._store.check()
        config = scorer.config
        self._decoder = open_decoder(config.data.pictures, config.model.vision.pixel_mean)
        self._held: dict[str, npt.NDArray[np.uint8]] = {}

    def of(self, questions: Sequence[Question]) -> list[tuple[npt.NDArray[np.uint8], ...]]:
        """uint8 `[height, width, 3]` of each question that has a picture; nothing on ranks that hold no encoder."""
        if not self.scorer.decodes:
            return [() for _ in questions]
        names = {question.picture: question.key for question in questions if question.picture}
        self._held = {name: self._held[name] if name in self._held else self._read(name, key) for name, key in names.items()}
        return [(self._held[question.picture],) if question.picture else () for question in questions]

    def _read(self, name: str, key: str) -> npt.NDArray[np.uint8]:
        where = f"task {self.task.name}, question {key}, picture {name}"
        if self._store is None:
            raise DataError(f"{where}: the task names no `pictures`")
        try:
            encoded = self._store.read(name)
        except Unusable as defect:
            raise DataError(f"{where}: {defect}") from None
        return decode_picture(encoded, picture_canvas(encoded, self.scorer.shape), where, self._decoder)
