"""Scores above chance, averages as the paper has them, comparisons of the same questions only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.questions import Question
from megatron_vlm.evaluation.report import as_map, read_scores, write_json
from megatron_vlm.evaluation.score_table import difference_table, score_markdown, score_table
from megatron_vlm.evaluation.task import Task
from megatron_vlm.evaluation.task_scores import average, compare, score_of, stable_score

#: arXiv 2503.07603, the 7B model with and without images in pre-training
PUBLISHED = {
    "with": {"vqav2": 76.39, "gqa": 61.08, "textvqa": 0.468, "refcoco": 0.642, "ocid_ref": 0.461, "pope": 0.875},
    "without": {"vqav2": 74.69, "gqa": 60.6, "textvqa": 0.416, "refcoco": 0.589, "ocid_ref": 0.397, "pope": 0.871},
}


def _questions(count: int, choices: int = 4) -> list[Question]:
    return [
        Question(str(n), ("q",), tuple("abcdef"[:choices]), n % choices, split="even" if n % 2 == 0 else "odd")
        for n in range(count)
    ]


def test_the_six_task_average_of_the_papers_table() -> None:
    """63.7 and 60.4: images in pre-training are worth 3.3 points."""
    assert average(PUBLISHED["with"]) == pytest.approx(0.6367833, abs=1e-6)
    assert average(PUBLISHED["without"]) == pytest.approx(0.6043167, abs=1e-6)


def test_a_score() -> None:
    task = Task("set", "multiple_choice", "x", group="text", split_by="parity")
    score = score_of(task, "seen", _questions(8), [1, 0, 1, 0, 1, 0, 0, 0])
    assert score.score.mean == pytest.approx(3 / 8)
    assert score.score.low < 3 / 8 < score.score.high
    assert (score.chance, score.above_chance) == (0.25, pytest.approx(0.125))
    assert score.splits == {"even": 0.75, "odd": 0.0}


def test_chance_is_the_tasks_own_where_it_says_one() -> None:
    assert score_of(Task("set", "multiple_choice", "x", chance=0.3), "seen", _questions(2), [1, 1]).chance == 0.3
    free = [Question("0", ("q",), answers=("a",))]
    assert score_of(Task("set", "open", "x"), "seen", free, [1]).chance == 0


def test_the_stable_score_is_the_mean_above_chance() -> None:
    four = score_of(Task("a", "multiple_choice", "x"), "seen", _questions(4, 4), [1, 1, 0, 0])
    two = score_of(Task("b", "multiple_choice", "x"), "seen", _questions(4, 2), [1, 1, 1, 0])
    assert stable_score([four, two]) == pytest.approx(0.25)


def test_yes_no_has_its_figures() -> None:
    questions = [Question(str(n), ("q",), ("yes", "no"), int(n >= 2)) for n in range(4)]
    score = score_of(Task("pope", "pope", "x", pictures="p"), "seen", questions, [1, 0, 1, 1], [True, False, False, False])
    assert score.figures == {
        "accuracy": 0.75,
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "yes_share": 0.25,
    }


def test_results_are_read_back_and_compared(tmp_path: Path) -> None:
    task = Task("set", "multiple_choice", "x", group="text")
    before, after = ([1.0, 0, 0, 1] * 20, [1.0, 1, 0, 1] * 20)
    for name, values in (("a", before), ("b", after)):
        write_json(tmp_path / name, as_map(3, {}, {}, [score_of(task, "seen", _questions(80), values)]))
    assert json.loads((tmp_path / "b").read_text())["stable_score"] == {"text": pytest.approx(0.5)}
    a, b = (read_scores(tmp_path / name)["set", "seen"] for name in ("a", "b"))
    assert b.values == tuple(after)
    found = compare(a, b)
    assert (found.better, found.worse, found.interval.mean) == (20, 0, 0.25)
    assert found.p_value < 0.001
    assert "+25.0%" in difference_table({("set", "seen"): found})


def test_other_questions_are_not_compared(tmp_path: Path) -> None:
    task = Task("set", "multiple_choice", "x")
    a, b = (score_of(task, "seen", _questions(count), [1.0] * count) for count in (4, 5))
    with pytest.raises(DataError, match="4 and 5 questions, of which 4 are the same"):
        compare(a, b)
    (tmp_path / "odd.json").write_text("[]")
    with pytest.raises(DataError, match=r"odd\.json: not the results of"):
        read_scores(tmp_path / "odd.json")


def test_tables() -> None:
    task = Task("set", "multiple_choice", "x", group="text")
    scores = [score_of(task, control, _questions(4), [1, 0, 1, 1]) for control in ("seen", "blind")]
    lines = score_table(scores, {"text": 0.5}).splitlines()
    assert lines[0].split() == ["task", "questions", "score", "95", "%", "chance"]
    assert lines[2].startswith("set, blind")
    assert "75.0%" in lines[1]
    assert lines[-1] == "stable score, text: +50.0% above chance"
    assert score_markdown(scores).splitlines()[2].startswith("| set | 4 | 75.0% |")
