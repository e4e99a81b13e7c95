"""Questions out of every form, and what is said of a record that is not of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.boxes import Box
from megatron_vlm.evaluation.questions import Question, read_questions
from megatron_vlm.evaluation.task import Task


def _task(folder: Path, form: str, records: list[dict[str, Any]], **fields: Any) -> Task:
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Task("set", form, str(path), **fields)  # type: ignore[arg-type]


def test_llm_foundrys_forms(tmp_path: Path) -> None:
    choice = {"query": "Where is it?\nAnswer:", "choices": ["here", "there"], "gold": 1}
    assert read_questions(_task(tmp_path, "multiple_choice", [choice])) == [
        Question("0", ("Where is it?\nAnswer:",), ("here", "there"), 1)
    ]
    lambada = {"context": "He gave it to", "continuation": "her"}
    assert read_questions(_task(tmp_path, "language_modelling", [lambada])) == [Question("0", ("He gave it to",), ("her",))]
    winograd = {"context_options": ["the cup", "the bag"], "continuation": "was too big.", "gold": 0}
    assert read_questions(_task(tmp_path, "schema", [winograd])) == [
        Question("0", ("the cup", "the bag"), ("was too big.",))
    ]


def test_pope(tmp_path: Path) -> None:
    record = {"question_id": 7, "image": "a.jpg", "text": "Is there a car?", "label": "no", "category": "random"}
    task = _task(tmp_path, "pope", [record], pictures="p", split_by="category", prompt="Q: {question}\nA:")
    assert read_questions(task) == [
        Question("7", ("Q: Is there a car?\nA:",), ("yes", "no"), 1, ("no",), "a.jpg", None, "random")
    ]


def test_vqa_joins_questions_and_annotations(tmp_path: Path) -> None:
    asked = {"questions": [{"image_id": 42, "question": "What colour?", "question_id": 420}]}
    answers = [{"answer": "red", "answer_id": 1}, {"answer": "dark red", "answer_id": 2}]
    answered = {"annotations": [{"question_id": 420, "image_id": 42, "answers": answers, "answer_type": "other"}]}
    (tmp_path / "q.json").write_text(json.dumps(asked))
    (tmp_path / "a.json").write_text(json.dumps(answered))
    task = Task(
        "vqa",
        "vqa",
        str(tmp_path / "q.json"),
        annotations=str(tmp_path / "a.json"),
        pictures="p",
        picture_name="COCO_val2014_{image_id:012d}.jpg",
        split_by="answer_type",
    )
    picture = "COCO_val2014_000000000042.jpg"
    assert read_questions(task) == [Question("420", ("What colour?",), (), 0, ("red", "dark red"), picture, None, "other")]
    (tmp_path / "a.json").write_text('{"annotations": []}')
    with pytest.raises(DataError, match=r"a\.json: question 420 of .*q\.json is not answered"):
        read_questions(task)


def test_open_questions_boxes_and_captions(tmp_path: Path) -> None:
    counted = {"image": "a.jpg", "question": "How many?", "answer": 3}
    assert read_questions(_task(tmp_path, "open", [counted], pictures="p"))[0].answers == ("3",)
    named = {"image": "a.jpg", "expression": "left cup", "box": [10, 20, 30, 40], "width": 100, "height": 200}
    found = read_questions(_task(tmp_path, "grounding", [named], pictures="p"))[0]
    assert (found.contexts, found.box) == (("left cup",), Box(0.1, 0.1, 0.4, 0.3))
    captioned = {"image": "a.jpg", "captions": ["a cup", "one cup"]}
    assert read_questions(_task(tmp_path, "captions", [captioned], pictures="p", prompt="Describe it."))[0] == Question(
        "0", ("Describe it.",), answers=("a cup", "one cup"), picture="a.jpg"
    )


def test_keys_that_repeat_are_places_in_the_file(tmp_path: Path) -> None:
    records = [{"id": "same", "context": "a", "continuation": "b"}] * 2
    assert [q.key for q in read_questions(_task(tmp_path, "language_modelling", records))] == ["0", "1"]


@pytest.mark.parametrize(
    ("form", "record", "said"),
    [
        (
            "multiple_choice",
            {"query": "q", "choices": ["a"], "gold": 1},
            "'gold' must number one of 1 choices from 0, and is 1",
        ),
        ("multiple_choice", {"query": "q", "choices": "ab", "gold": 0}, "'choices' must be a list of texts"),
        ("multiple_choice", {"choices": ["a"], "gold": 0}, "'query' must be a text, and is null"),
        ("language_modelling", {"context": "", "continuation": " "}, "'continuation' is empty"),
        ("schema", {"context_options": [], "continuation": "b", "gold": 0}, "'context_options' must be a list"),
        ("pope", {"image": "a", "text": "t", "label": "maybe"}, "must be yes or no, and is 'maybe'"),
        ("pope", {"text": "t", "label": "no"}, "the picture's name '{image}' cannot be made: no field 'image'"),
        ("open", {"image": "a", "question": "q"}, "neither a text 'answer' nor a list 'answers'"),
        ("open", {"image": "a", "question": "q", "answer": True}, "'answer' is true: write it as the text that is right"),
        ("grounding", {"image": "a", "expression": "e", "box": [1, 2, 3]}, "'box' must be"),
        ("grounding", {"image": "a", "expression": "e", "box": 7, "width": 4, "height": 4}, "'box' must be"),
        ("grounding", {"image": "a", "expression": "e", "box": True, "width": 4, "height": 4}, "'box' must be"),
        ("captions", {"image": "a", "captions": []}, "'captions' must be a list of texts"),
    ],
)
def test_a_record_that_is_wrong_is_named(tmp_path: Path, form: str, record: dict[str, Any], said: str) -> None:
    good = {"context": "a", "continuation": "b"} if form == "language_modelling" else None
    records = [good, record] if good else [record]
    task = _task(
        tmp_path, form, records, pictures="p" if form not in ("multiple_choice", "language_modelling", "schema") else ""
    )
    with pytest.raises(DataError) as refused:
        read_questions(task)
    assert f"set.jsonl, record {len(records) - 1}: " in str(refused.value)
    assert said in str(refused.value)


def test_labels_of_open_questions(tmp_path: Path) -> None:
    records = [{"question": "q", "answer": "Yes"}, {"question": "q", "answer": False}, {"question": "q", "answers": ["NO "]}]
    task = _task(tmp_path, "open", records, metric="yes_no")
    assert [question.answers for question in read_questions(task)] == [("yes",), ("no",), ("no",)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"answer": "maybe"}, "field 'answer' must be yes or no, and is 'maybe'"),
        ({"answers": ["yes", 1]}, "field 'answers' must be yes or no, and is 1"),
        ({"answers": ["yes", "no"]}, "field 'answers' says both yes and no"),
    ],
)
def test_other_labels_of_open_questions_are_refused(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    task = _task(tmp_path, "open", [{"question": "q", "answer": "no"}, {"question": "q", **fields}], metric="yes_no")
    with pytest.raises(DataError, match=rf"set\.jsonl, record 1: {said}"):
        read_questions(task)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{foo.bar}", "'dict' object has no attribute 'bar'"),
        ("{question[x]}", "string indices must be integers"),
        ("{foo:d}", "unsupported format string"),
        ("{foo[bar]}", "no field 'bar'"),
        ("{question", "expected '}'"),
    ],
)
def test_a_template_that_does_not_fit_the_record(tmp_path: Path, template: str, said: str) -> None:
    record = {"question": "q", "answer": "a", "foo": {"x": 1}}
    with pytest.raises(DataError, match=r"set\.jsonl, record 0: the prompt .* cannot be filled: ") as refused:
        read_questions(_task(tmp_path, "open", [record], prompt=template))
    assert said in str(refused.value)
    with pytest.raises(DataError, match=r"set\.jsonl, record 0: the picture's name .* cannot be made: ") as refused:
        read_questions(_task(tmp_path, "open", [record], pictures="p", picture_name=template))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("questions", "annotations", "said"),
    [
        ([], {"1": {}}, r"a\.json: 'annotations' must be a list of objects, as VQA has them, and is an object"),
        ("none", [], r"q\.json: 'questions' must be a list of objects, as VQA has them, and is a string"),
        ([{"question_id": 1}, 5], [], r"q\.json, entry 1 of 'questions': must be an object with a number or text"),
        ([], [{"question_id": [1]}], r"a\.json, entry 0 of 'annotations': must be an object with a number or text"),
    ],
)
def test_vqa_files_of_another_form(tmp_path: Path, questions: Any, annotations: Any, said: str) -> None:
    (tmp_path / "q.json").write_text(json.dumps({"questions": questions}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": annotations}))
    task = Task("vqa", "vqa", str(tmp_path / "q.json"), annotations=str(tmp_path / "a.json"), pictures="p")
    with pytest.raises(DataError, match=said):
        read_questions(task)


def test_broken_lines_missing_and_empty_files(tmp_path: Path) -> None:
    task = _task(tmp_path, "schema", [])
    with pytest.raises(DataError, match="holds no question"):
        read_questions(task)
    Path(task.data).write_text('{"context_options"')
    with pytest.raises(DataError, match=r"set\.jsonl, record 0: "):
        read_questions(task)
    Path(task.data).unlink()
    with pytest.raises(DataError, match="no such file"):
        read_questions(task)
