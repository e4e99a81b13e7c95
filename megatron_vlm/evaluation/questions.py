"""Questions of a task, out of the forms in which the field's sets come.

| form | records |
|---|---|
| multiple_choice | llm-foundry's jsonl: `query`, `choices`, `gold` (number of the right one) |
| language_modelling | llm-foundry's jsonl: `context`, `continuation` |
| schema | llm-foundry's jsonl: `context_options`, `continuation`, `gold` |
| pope | POPE's jsonl: `image`, `text`, `label` (yes or no) |
| vqa | VQA's questions .json (`questions`: `question_id`, `image_id`, `question`) and annotations .json (`answers`) |
| open | jsonl: `question`, `answer` or `answers`; of metric yes_no yes or no in any case, true or false |
| grounding | jsonl: `expression`, `box` [x, y, w, h] in pixels, `width`, `height` |
| captions | jsonl: `captions` |

Any jsonl record may name a picture (`image`) and itself (`id` or `question_id`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_vlm.data.records import Unit
from megatron_vlm.data.sources.json_files import read_objects
from megatron_vlm.data.sources.json_values import kind_of, parse_object, shown
from megatron_vlm.data.sources.opening import input_file
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.boxes import Box
from megatron_vlm.evaluation.task import Form, Task
from megatron_vlm.evaluation.yes_no import read_label


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        key: what names it in results.
        contexts: what stands before the answer: one, or of a schema one for each way to fill it in.
        choices: answers on offer; of a schema the one continuation. Empty where answers are free.
        gold: number of the right context or choice; 0 where there is one.
        answers: free answers that people gave.
        picture: its name in the task's store, "" without.
        box: the right one, in shares of the picture.
        split: value of the field by which results are split.
    """

    key: str
    contexts: tuple[str, ...]
    choices: tuple[str, ...] = ()
    gold: int = 0
    answers: tuple[str, ...] = ()
    picture: str = ""
    box: Box | None = None
    split: str = ""


Fields = Mapping[str, Any]


class _Wrong(Exception):
    """What is wrong with a record."""


def read_questions(task: Task) -> list[Question]:
    """All questions of a task, in the order of the file.

    Raises:
        DataError: a file that cannot be read, or a record that is not of the form; named, with what is wrong.
    """
    make = _MAKERS[task.form]
    questions: list[Question] = []
    for number, fields in _records(task):
        try:
            questions.append(make(_Record(task, fields, _key(fields, number))))
        except _Wrong as wrong:
            raise DataError(f"{task.data}, record {number}: {wrong} (task {task.name}, form {task.form})") from None
    if not questions:
        raise DataError(f"{task.data}: holds no question (task {task.name})")
    if len({question.key for question in questions}) < len(questions):
        # ids that are not unique name nothing: the place in the file does
        questions = [replace(question, key=str(number)) for number, question in enumerate(questions)]
    return questions


def _records(task: Task) -> Iterator[tuple[int, dict[str, Any]]]:
    if task.form == "vqa":
        yield from enumerate(_vqa_records(task))
        return
    path = Path(task.data)
    if not path.is_file():
        raise DataError(f"{path}: no such file (task {task.name})")
    file = input_file(str(path))
    for number, found in enumerate(read_objects(Unit(file.url, 0, file.size, file.size))):
        try:
            if isinstance(found.value, Unusable):
                raise found.value
            yield number, found.value
        except Unusable as defect:
            raise DataError(f"{path}, record {number}: {defect} (task {task.name})") from None


def _vqa_records(task: Task) -> Iterator[dict[str, Any]]:
    asked, answered = _vqa_entries(Path(task.data), "questions"), _vqa_entries(Path(task.annotations), "annotations")
    by_id = {entry["question_id"]: entry for entry in answered}
    for question in asked:
        answer = by_id.get(question["question_id"])
        if answer is None:
            raise DataError(f"{task.annotations}: question {question['question_id']} of {task.data} is not answered")
        yield {**answer, **question}


def _vqa_entries(path: Path, field: str) -> list[dict[str, Any]]:
    """The list `field` of VQA's .json; every entry has a `question_id`."""
    try:
        entries = parse_object(path.read_bytes()).get(field, [])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except Unusable as defect:
        raise DataError(f"{path}: {defect}") from None
    if not isinstance(entries, list):
        raise DataError(f"{path}: {field!r} must be a list of objects, as VQA has them, and is {kind_of(entries)}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("question_id"), (int, str)):
            raise DataError(f"{path}, entry {number} of {field!r}: must be an object with a number or text 'question_id'")
    return entries


def _key(fields: Fields, number: int) -> str:
    for name in ("question_id", "id"):
        if isinstance(fields.get(name), (str, int)):
            return str(fields[name])
    return str(number)


# -- fields --------------------------------------------------------------------------------------------------------


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise _Wrong(f"field {name!r} must be a text, and is {json.dumps(value)[:60]}")
    return value


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    value = fields.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise _Wrong(f"field {name!r} must be a list of texts, and is {json.dumps(value)[:60]}")
    return tuple(value)


def _gold(fields: Fields, choices: int) -> int:
    value = fields.get("gold")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < choices:
        raise _Wrong(f"field 'gold' must number one of {choices} choices from 0, and is {json.dumps(value)[:60]}")
    return value


def _label(value: Any, name: str) -> str:
    label = read_label(value)
    if label is None:
        raise _Wrong(f"field {name!r} must be yes or no, and is {shown(value)}")
    return label


# -- forms ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """A record of a task and its name, and what every form takes of them."""

    task: Task
    fields: Fields
    key: str

    def question(
        self,
        *contexts: str,
        choices: tuple[str, ...] = (),
        gold: int = 0,
        answers: tuple[str, ...] = (),
        box: Box | None = None,
    ) -> Question:
        split = str(self.fields.get(self.task.split_by, "")) if self.task.split_by else ""
        return Question(self.key, contexts, choices, gold, answers, self._picture(), box, split)

    def prompt(self, question: object) -> str:
        """The task's prompt, filled with the record's fields and with `question`."""
        return self._filled(self.task.prompt, {**self.fields, "question": question}, "the prompt {} cannot be filled")

    def _picture(self) -> str:
        if not self.task.pictures:
            return ""
        return self._filled(self.task.picture_name, self.fields, "the picture's name {} cannot be made")

    def _filled(self, template: str, fields: Fields, failed: str) -> str:
        try:
            return template.format(**fields)
        except (KeyError, IndexError) as error:
            raise _Wrong(f"{failed.format(repr(template))}: no field {error}") from None
        # {field.name}, a map's {field[name]} and {field:d} of values that have no such thing
        except (AttributeError, TypeError, ValueError) as error:
            raise _Wrong(f"{failed.format(repr(template))}: {error}") from None


def _multiple_choice(record: _Record) -> Question:
    choices = _texts(record.fields, "choices")
    return record.question(_text(record.fields, "query"), choices=choices, gold=_gold(record.fields, len(choices)))


def _language_modelling(record: _Record) -> Question:
    context, continuation = _text(record.fields, "context"), _text(record.fields, "continuation")
    if not continuation.strip():
        raise _Wrong("field 'continuation' is empty")
    return record.question(context, choices=(continuation,))


def _schema(record: _Record) -> Question:
    contexts = _texts(record.fields, "context_options")
    continuation = _text(record.fields, "continuation")
    return record.question(*contexts, choices=(continuation,), gold=_gold(record.fields, len(contexts)))


def _pope(record: _Record) -> Question:
    label = _label(record.fields.get("label"), "label")
    asked = record.prompt(_text(record.fields, "text"))
    return record.question(asked, choices=("yes", "no"), gold=int(label == "no"), answers=(label,))


def _vqa(record: _Record) -> Question:
    given = record.fields.get("answers")
    if not isinstance(given, list) or not given:
        raise _Wrong("it has no 'answers'")
    answers = tuple(_text(answer, "answer") if isinstance(answer, Mapping) else str(answer) for answer in given)
    return record.question(record.prompt(_text(record.fields, "question")), answers=answers)


def _open(record: _Record) -> Question:
    name = "answers" if "answers" in record.fields else "answer"
    given = record.fields["answers"] if name == "answers" else [record.fields.get("answer")]
    if not isinstance(given, list) or not given or not all(isinstance(a, (str, int, float)) for a in given):
        raise _Wrong("it has neither a text 'answer' nor a list 'answers'")
    asked = record.prompt(_text(record.fields, "question"))
    if record.task.measured_by != "yes_no":
        return record.question(asked, answers=tuple(_written(answer, name) for answer in given))
    labels = {_label(answer, name) for answer in given}
    if len(labels) > 1:
        raise _Wrong(f"field {name!r} says both yes and no, of which metric yes_no takes one; leave the wrong ones out")
    return record.question(asked, answers=tuple(labels))


def _written(answer: str | float, name: str) -> str:
    """A text or number as text; true and false are words of the task's own."""
    if isinstance(answer, bool):
        raise _Wrong(f"field {name!r} is {json.dumps(answer)}: write it as the text that is right, or take metric yes_no")
    return str(answer)


def _grounding(record: _Record) -> Question:
    fields = record.fields
    corners = fields.get("box")
    numbers = [*(corners if isinstance(corners, list) else []), fields.get("width"), fields.get("height")]
    if len(numbers) != 6 or not all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in numbers):
        raise _Wrong("'box' must be [x, y, w, h] in pixels, beside 'width' and 'height'")
    x, y, w, h, width, height = numbers
    if width <= 0 or height <= 0:
        raise _Wrong(f"a picture of {width} x {height} pixels")
    box = Box(x / width, y / height, (x + w) / width, (y + h) / height)
    return record.question(record.prompt(_text(fields, "expression")), box=box)


def _captions(record: _Record) -> Question:
    return record.question(record.prompt(""), answers=_texts(record.fields, "captions"))


_MAKERS: dict[Form, Callable[[_Record], Question]] = {
    "multiple_choice": _multiple_choice,
    "language_modelling": _language_modelling,
    "schema": _schema,
    "pope": _pope,
    "vqa": _vqa,
    "open": _open,
    "grounding": _grounding,
    "captions": _captions,
}
