"""A limit leaves questions out, and nothing else: the first ones are put as they are without it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_vlm.evaluation import suite
from megatron_vlm.evaluation.prompts import Shots, preface, prompt_of
from megatron_vlm.evaluation.questions import Question
from megatron_vlm.evaluation.suite import run_tasks
from megatron_vlm.evaluation.task import Task


def _put(task: Task, generator: Any, questions: Sequence[Question], pictures: Any, shown: Sequence[Question]) -> list[str]:
    """The prompts themselves as answers."""
    shots = Shots(task, questions)
    return [f"{q.picture}: {prompt_of(task, q, preface(task, shots.of(q)))}" for q in shown]


@pytest.fixture(autouse=True)
def _nothing_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "free_answers", _put)
    monkeypatch.setattr(suite, "Generator", lambda scorer: None)
    monkeypatch.setattr(suite, "TaskPictures", lambda task, scorer: None)


@pytest.mark.parametrize("limit", [1, 3])
def test_examples_and_exchanged_pictures_do_not_depend_on_the_limit(limit: int, tmp_path: Path) -> None:
    records = [{"question": f"q{n}", "answer": f"a{n}", "image": f"{n}.jpg"} for n in range(9)]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    task = Task("t", "open", str(tmp_path / "set.jsonl"), few_shot=2, pictures="p")
    scorer: Any = SimpleNamespace(topology=SimpleNamespace(rank=1))
    whole = list(run_tasks(scorer, [task], ("seen", "shuffled")))
    some = list(run_tasks(scorer, [task], ("seen", "shuffled"), limit))
    assert [score.answers for score in some] == [score.answers[:limit] for score in whole]
    assert [score.keys for score in some] == [score.keys[:limit] for score in whole]
    assert all(answer.count("\n") == 2 for score in some for answer in score.answers)
