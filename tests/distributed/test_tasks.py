"""Tasks by likelihood on a real checkpoint: what documents get alone, in every layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import ConfigError
from megatron_vlm.evaluation.during_training import TaskMeasure
from megatron_vlm.evaluation.likelihood import likelihoods
from megatron_vlm.evaluation.prompts import choices_of, segment_of, split_ids
from megatron_vlm.evaluation.questions import read_questions
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.evaluation.suite import run_tasks
from megatron_vlm.evaluation.task import Task, load_task, task_files
from megatron_vlm.evaluation.task_pictures import TaskPictures
from megatron_vlm.training.checkpoint import checkpoint_config, find_checkpoint
from megatron_vlm.training.loop import Run
from megatron_vlm.training.scoring import Scored
from megatron_vlm.training.step import forward_row
from tests.distributed.alone import alone
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, SAMPLE, TP2, configuration

pytestmark = pytest.mark.distributed

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tp2": (2, TP2),
    "pp2": (2, PP2),
    "dp2": (2, {}),
}


def _train(config: Any) -> None:
    Run(config).train()


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps, and a task of each form with its pictures."""
    folder = tmp_path_factory.mktemp("run")
    run_ranks(1, _train, configuration(data, **{"logging.directory": folder, "parallel.device": "cpu"}))
    words = ["a red apple", "the dog", "one", "a bicycle on a road", "blue", "two of them"]
    names = _picture_names(6)
    choices = [
        {"query": f"What is it, {n}?", "choices": words[: 2 + n % 3], "gold": n % 2, "image": names[n]} for n in range(6)
    ]
    lambada = [{"context": f"This is {word}", "continuation": "a picture"} for word in words]
    schema = [{"context_options": words[:2], "continuation": "is here.", "gold": n % 2} for n in range(4)]
    pope = [{"image": name, "text": f"Is it {words[n]}?", "label": ("yes", "no")[n % 2]} for n, name in enumerate(names)]
    asked = [{"image": name, "question": "What is it?", "answers": [words[n]] * 10} for n, name in enumerate(names)]
    boxes = [{"image": name, "expression": "it", "box": [1, 1, 8, 8], "width": 16, "height": 16} for name in names]
    sets = {"choice": choices, "lambada": lambada, "schema": schema, "pope": pope, "asked": asked, "boxes": boxes}
    for name, records in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def _picture_names(count: int) -> list[str]:
    import tarfile

    with tarfile.open(SAMPLE / "images" / "train-00000.tar") as tar:
        return [name for name in tar.getnames() if not name.endswith((".txt", ".json"))][:count]


def _tasks(folder: Path) -> list[Task]:
    pictures = str(SAMPLE / "images" / "train-00000.tar")
    return [
        Task("choice", "multiple_choice", str(folder / "choice.jsonl"), pictures=pictures, few_shot=1, normalise="tokens"),
        Task("prior", "multiple_choice", str(folder / "choice.jsonl"), normalise="unconditional"),
        Task("lambada", "language_modelling", str(folder / "lambada.jsonl")),
        Task("schema", "schema", str(folder / "schema.jsonl"), normalise="bytes"),
        Task("pope", "pope", str(folder / "pope.jsonl"), pictures=pictures, by="likelihood", prompt="Q: {question} A:"),
        Task("said", "pope", str(folder / "pope.jsonl"), pictures=pictures, max_new_tokens=4),
        Task("asked", "open", str(folder / "asked.jsonl"), metric="vqa", pictures=pictures, few_shot=1, max_new_tokens=4),
        Task("boxes", "grounding", str(folder / "boxes.jsonl"), pictures=pictures, max_new_tokens=4),
    ]


def _scorer(folder: Path, parallel: dict[str, Any]) -> Scorer:
    checkpoint = find_checkpoint(folder)
    config = checkpoint_config(checkpoint)
    return Scorer.open(checkpoint, replace(config, parallel=replace(config.parallel, **parallel)))


def _scores(folder: Path, parallel: dict[str, Any]) -> list[tuple[Any, ...]]:
    scores = run_tasks(_scorer(folder, parallel), _tasks(folder), ("seen", "shuffled", "blind"))
    return [(s.task, s.control, s.values, s.figures, s.answers) for s in scores]


def _alone(folder: Path) -> list[tuple[str, float]]:
    """The largest difference between what a task gives and the plain softmax over each document alone."""
    scorer, worst = _scorer(folder, {}), []
    (model,) = scorer.engine.forward_chunks
    model.eval()
    for task in _tasks(folder)[1:5]:
        questions = read_questions(task)
        pictures = TaskPictures(task, scorer)
        off = 0.0
        for question, found in zip(questions, likelihoods(task, scorer, questions, pictures, questions), strict=True):
            (seen,) = pictures.of([question])
            for number, choice in enumerate(choices_of(task, question, "")):
                before, answer = split_ids(scorer.tokenizer, choice)
                rows = scorer.shape.image_tokens if seen else 0
                document = Scored(segment_of(scorer.tokenizer, before, answer, rows, scorer.shape.sequence_length), seen)
                batch = alone(document, scorer)
                with torch.no_grad(), scorer.engine.whole_parameters():
                    logits = forward_row(model, batch, labels=False)[0].double()
                labels = torch.tensor(answer)
                chosen = logits[len(document.segment.ids) - 1 - len(answer) :, : scorer.tokens.vocab_size][: len(answer)]
                expected = float(chosen.log_softmax(-1)[torch.arange(len(answer)), labels].sum())
                off = max(off, abs(expected - found.log_likelihood[number]))
                greedy = bool((chosen.argmax(-1) == labels).all())
                assert (found.tokens[number], found.greedy[number]) == (len(answer), greedy)
        worst.append((task.name, off))
    return worst


def test_likelihoods_are_those_of_each_document_alone(folder: Path) -> None:
    (worst,) = run_ranks(1, _alone, folder)
    assert [name for name, _ in worst] == ["prior", "lambada", "schema", "pope"]
    assert all(off < 1e-4 for _, off in worst), worst


def test_every_layout_answers_alike(folder: Path) -> None:
    (expected,) = run_ranks(1, _scores, folder, {})
    assert [(task, control) for task, control, *_ in expected] == [
        *(("choice", control) for control in ("seen", "shuffled", "blind")),
        ("prior", "seen"),
        ("lambada", "seen"),
        ("schema", "seen"),
        *((task, control) for task in ("pope", "said", "asked", "boxes") for control in ("seen", "shuffled", "blind")),
    ]
    assert all(0 < len(values) <= 6 for _, _, values, *_ in expected)
    assert all(bool(figures) == (task in ("pope", "said")) for task, _, _, figures, _ in expected)
    assert all(len(answers) == 6 * (task in ("said", "asked", "boxes")) for task, *_, answers in expected)
    for ranks, parallel in LAYOUTS.values():
        for found in run_ranks(ranks, _scores, folder, parallel):
            assert found == expected


def _train_with_tasks(config: RunConfig) -> int:
    return Run(config, TaskMeasure(config)).train().exit_code


def test_tasks_on_the_way_score_as_on_the_checkpoint(folder: Path, data: Path, tmp_path: Path) -> None:
    """Under pipeline and data parallelism, and once more where the run is resumed."""
    pictures = SAMPLE / "images" / "train-00000.tar"
    said = f"form: multiple_choice\ndata: {folder / 'choice.jsonl'}\npictures: {pictures}\n"
    (tmp_path / "choice.yaml").write_text(said)
    (tmp_path / "asked.yaml").write_text(f"form: open\ndata: {folder / 'asked.jsonl'}\nmax_new_tokens: 3\n")
    fields = {
        "logging.directory": tmp_path / "run",
        "evaluation.tasks": f"['{tmp_path}']",
        "evaluation.interval": 2,
        "evaluation.controls": "[blind]",
        "checkpoint.save_interval": 2,
    }
    assert run_ranks(4, _train_with_tasks, configuration(data, PP2, **fields)) == [0] * 4
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = {record["step"]: record["scores"] for record in records if record["kind"] == "tasks"}
    assert list(found) == [0, 2, 4, 5]
    assert {name for scores in found.values() for name in scores} == {"asked", "choice", "choice/blind"}
    tasks = [load_task(path) for path in task_files([tmp_path])]
    (again,) = run_ranks(1, _scores_of, tmp_path / "run", tasks)
    assert again == found[5]


def _scores_of(folder: Path, tasks: list[Task]) -> dict[str, float]:
    scores = run_tasks(_scorer(folder, {"pipeline_model_parallel_size": 1}), tasks, ("seen", "blind"))
    return {s.task if s.control == "seen" else f"{s.task}/{s.control}": s.score.mean for s in scores}


def test_what_a_layout_cannot_answer_is_refused_at_start(folder: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.yaml").write_text(f"form: open\ndata: {folder / 'asked.jsonl'}\n")
    fields = {"evaluation.tasks": f"['{tmp_path / 'asked.yaml'}']"}
    TaskMeasure(configuration(data, **fields))
    with pytest.raises(ConfigError, match="asked would be answered by generation"):
        TaskMeasure(configuration(data, {**TP2, "sequence_parallel": True}, **fields))
    with pytest.raises(ConfigError, match="no task in it"):
        TaskMeasure(configuration(data, **{"evaluation.tasks": f"['{folder / 'checkpoints'}']"}))
