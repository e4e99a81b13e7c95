"""lmms-eval on our checkpoints: its own tasks' machinery, pictures and metrics, against what we answer without it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.cli.main import main
from megatron_vlm.evaluation.generation import Generator
from megatron_vlm.evaluation.sampling import Sampling
from megatron_vlm.evaluation.scorer import Scorer, layout_for
from megatron_vlm.training.checkpoint import checkpoint_config, find_checkpoint
from megatron_vlm.training.loop import Run
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import SAMPLE, TP2, configuration

pytest.importorskip("lmms_eval", reason="needs lmms-eval: pip install lmms-eval")
pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SAY = """
task: own_pictures
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function own_utils.picture
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: 6, do_sample: false}}
process_results: !function own_utils.scored
metric_list: [{{metric: said, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """
import io, json, os
from PIL import Image


def picture(doc):
    return [Image.open(io.BytesIO(doc["png"])).convert("RGB")]


def scored(doc, results):
    with open(os.environ["OWN_LOG"], "a") as file:
        file.write(json.dumps([doc["question"], results[0]]) + "\\n")
    return {"said": float(results[0].strip() == doc["answer"])}
"""


def _train(config: Any) -> None:
    Run(config).train()


def _command(arguments: list[str]) -> int:
    return main(["evaluate", *arguments])


def _pictures() -> list[bytes]:
    with tarfile.open(SAMPLE / "images" / "train-00000.tar") as tar:
        return [tar.extractfile(m).read() for m in tar if m.name.endswith(".png")][:6]  # type: ignore[union-attr]


def _ours(folder: Path) -> list[str]:
    """The same prompts by our own generation."""
    import numpy as np
    from PIL import Image

    from megatron_vlm.data.pictures import decode_picture

    checkpoint = find_checkpoint(folder)
    scorer = Scorer.open(checkpoint, layout_for(checkpoint_config(checkpoint), 1, {}, generates=True))
    generator, prompts = Generator(scorer), []
    for number, encoded in enumerate(_pictures()):
        stream = io.BytesIO()
        Image.open(io.BytesIO(encoded)).convert("RGB").save(stream, "PNG")
        pixels = decode_picture(stream.getvalue(), scorer.shape.image_size, "here")
        assert pixels.dtype == np.uint8
        prompts.append(generator.prompt(f"what is it? {number}", [pixels]))
    return [scorer.tokenizer.decode(answer.ids) for answer in generator.generate(prompts, Sampling(6))]


def test_it_answers_as_without_the_harness(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas

    folder, tasks, log = tmp_path / "run", tmp_path / "tasks", tmp_path / "said"
    fields = {"logging.directory": folder, "schedule.lr": 1e-5, "schedule.min_lr": 0, "model.language.init_std": 0.3}
    run_ranks(2, _train, configuration(data, TP2, **fields))
    (ours,) = run_ranks(1, _ours, folder)
    tasks.mkdir()
    rows = [
        {"png": picture, "question": f"what is it? {number}", "answer": ours[number].strip() if number % 2 else "no"}
        for number, picture in enumerate(_pictures())
    ]
    pandas.DataFrame(rows).to_parquet(tasks / "set.parquet")
    (tasks / "own.yaml").write_text(SAY.format(data=tasks / "set.parquet"))
    (tasks / "own_utils.py").write_text(UTILS)
    output = tmp_path / "ours.json"
    monkeypatch.setenv("OWN_LOG", str(log))
    arguments = [
        str(folder),
        "--harness",
        "lmms-eval:own_pictures",
        "--harness-include",
        str(tasks),
        "--output",
        str(output),
    ]
    assert run_ranks(2, _command, arguments) == [0, 0]
    said = dict(json.loads(line) for line in log.read_text().splitlines())
    # the harness takes the white space around an answer off
    assert {row["question"]: text.strip() for row, text in zip(rows, ours, strict=True)} == said
    (task,) = json.loads(output.read_text())["harness"].values()
    assert next(value for name, value in task.items() if name.startswith("said,")) == pytest.approx(0.5)
