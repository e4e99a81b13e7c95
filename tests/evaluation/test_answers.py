"""What free answers are worth, metric by metric."""

from __future__ import annotations

import pytest

from megatron_vlm.evaluation.answers import read_number, value_of
from megatron_vlm.evaluation.boxes import Box
from megatron_vlm.evaluation.questions import Question
from megatron_vlm.evaluation.task import Task


@pytest.mark.parametrize(
    ("text", "number"), [("3", 3), ("There are 12 of them", 12), ("two dogs", 2), ("None.", 0), ("many", None)]
)
def test_numbers(text: str, number: int | None) -> None:
    assert read_number(text) == number


@pytest.mark.parametrize(
    ("form", "fields", "question", "text", "value"),
    [
        ("vqa", {}, {"answers": ("red",) * 3 + ("blue",) * 7}, "Red.", 0.9),
        ("open", {}, {"answers": ("the left",)}, "Left", 1.0),
        ("open", {}, {"answers": ("the left",)}, "to the left", 0.0),
        ("open", {"metric": "number"}, {"answers": ("2",)}, "Two cats", 1.0),
        ("open", {"metric": "number"}, {"answers": ("2",)}, "cats", 0.0),
        ("open", {"metric": "yes_no"}, {"answers": ("Yes",)}, "Yes", 1.0),
        ("open", {"metric": "yes_no"}, {"answers": ("Yes",)}, "No", 0.0),
        ("open", {"metric": "yes_no"}, {"answers": ("No",)}, "No", 1.0),
        ("pope", {}, {"answers": ("no",)}, "No, it is not.", 1.0),
        ("pope", {}, {"answers": ("no",)}, "Yes", 0.0),
        ("grounding", {}, {"box": Box(0, 0, 0.5, 0.5)}, "[0, 0, 0.5, 0.5]", 1.0),
        ("grounding", {}, {"box": Box(0, 0, 0.5, 0.5)}, "[0, 0, 0.5, 0.2]", 0.0),
        ("grounding", {"overlap": 0.25}, {"box": Box(0, 0, 0.5, 0.5)}, "[0, 0, 0.5, 0.2]", 1.0),
        ("grounding", {}, {"box": Box(0, 0, 0.5, 0.5)}, "there", 0.0),
    ],
)
def test_values(form: str, fields: dict, question: dict, text: str, value: float) -> None:
    task = Task("t", form, "x", **fields)  # type: ignore[arg-type]
    assert value_of(task, Question("0", ("q",), **question), text) == pytest.approx(value)
