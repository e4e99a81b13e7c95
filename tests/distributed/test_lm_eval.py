"""lm-evaluation-harness on our checkpoints, against its own Hugging Face model on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.cli.main import main
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import TP2, configuration

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'megatron_vlm[harness]'")
pytestmark = [pytest.mark.distributed, pytest.mark.slow]

QUESTIONS = [
    {"question": f"What comes after {word}?", "choices": ["a cat", "the state of the union", "one"], "answer": n % 3}
    for n, word in enumerate(["a dog", "two", "the whale", "war and peace", "a picture", "the sea"])
]
CHOICE = """
task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
SAY = """
task: own_say
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["zzz"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
TEXT = """
task: own_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}} {{{{choices[1]}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


def _train(config: Any) -> None:
    Run(config).train()


def _command(arguments: list[str]) -> int:
    return main(["evaluate", *arguments])


def test_the_harness_scores_alike(data: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder, tasks = tmp_path / "run", tmp_path / "tasks"
    fields = {"logging.directory": folder, "schedule.lr": 1e-5, "schedule.min_lr": 0, "model.language.init_std": 0.3}
    run_ranks(2, _train, configuration(data, TP2, **fields))
    tasks.mkdir()
    (tasks / "set.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, text in (("choice", CHOICE), ("say", SAY), ("text", TEXT)):
        (tasks / f"{name}.yaml").write_text(text.format(data=tasks / "set.jsonl"))
    names = ["own_choice", "own_say", "own_text"]
    output = tmp_path / "ours.json"
    arguments = [str(folder), "--harness", ",".join(names), "--harness-include", str(tasks), "--output", str(output)]
    assert run_ranks(2, _command, arguments) == [0, 0]
    ours = json.loads(output.read_text())["harness"]

    assert main(["convert", "export", str(folder), "--to", str(tmp_path / "hf"), "--part", "language"]) == 0
    manager = TaskManager(include_path=str(tasks))
    settings = f"pretrained={tmp_path / 'hf'},dtype=float32,add_bos_token=False,prefix_token_id=0"
    theirs = simple_evaluate(
        model="hf", model_args=settings, tasks=names, task_manager=manager, device="cpu", batch_size=2, log_samples=False
    )["results"]
    for name in names:
        for metric, value in theirs[name].items():
            if isinstance(value, float) and "stderr" not in metric:
                assert ours[name][metric] == pytest.approx(value, rel=1e-4), (name, metric)
