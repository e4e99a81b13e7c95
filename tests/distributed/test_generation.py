"""Generation with a cache: the tokens that whole passes over prompt and answer give, in every layout and batch."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_vlm.cli.main import main
from megatron_vlm.evaluation.generation import Generator, Prompt
from megatron_vlm.evaluation.sampling import Sampling
from megatron_vlm.evaluation.scorer import Scorer, layout_for
from megatron_vlm.ops.assemble import MODALITY_TEXT, Segment
from megatron_vlm.training.checkpoint import checkpoint_config, find_checkpoint
from megatron_vlm.training.loop import Run
from megatron_vlm.training.scoring import Scored
from megatron_vlm.training.step import forward_row
from tests.distributed.alone import alone
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, SAMPLE, TP2, configuration

pytestmark = pytest.mark.distributed

NEW = 12


def _train(config: Any) -> None:
    Run(config).train()


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    layout = {**TP2, "sequence_parallel": True}
    # weights so large that what it says depends on every word, and hardly trained, which would make it say "the"
    fields = {"logging.directory": folder, "schedule.lr": 1e-5, "schedule.min_lr": 0, "model.language.init_std": 0.3}
    run_ranks(2, _train, configuration(data, layout, **fields))
    return folder


def _generator(folder: Path, parallel: dict[str, Any], world: int, together: int = 32) -> Generator:
    checkpoint = find_checkpoint(folder)
    config = layout_for(checkpoint_config(checkpoint), world, parallel, generates=True)
    return Generator(Scorer.open(checkpoint, config), together)


def _prompts(generator: Generator) -> list[Prompt]:
    """Text of several lengths, pictures before text, and pictures between words, also beyond the shortest prompt."""
    rng = np.random.default_rng(0)
    size = generator.scorer.shape.image_size
    pictures = [rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(4)]
    if not generator.scorer.decodes:
        pictures = []
    prompts = [generator.prompt(text) for text in ("Call me", "I", "The state of the union is strong, and")]
    prompts += [generator.prompt(text, pictures[n : n + 1], 1) for n, text in enumerate(("a picture of", ""))]
    image, rows = generator.scorer.tokens.image_token_id, generator.scorer.shape.image_tokens
    words = generator.scorer.tokenizer.encode("Here is one, and there another: ")
    between = np.array([*words, *[image] * rows, *words, *[image] * rows, *words[:2]], np.int32)
    return [*prompts, Prompt(between, tuple(pictures[2:4]))]


def _cached(folder: Path, parallel: dict[str, Any], world: int, together: int, sampling: Sampling) -> list[tuple]:
    generator = _generator(folder, parallel, world, together)
    heard: list[tuple[int, int]] = []
    answers = generator.generate(_prompts(generator), sampling, lambda number, token: heard.append((number, token)))
    for number in {number for number, _ in heard}:
        assert tuple(token for n, token in heard if n == number) == answers[number].ids
    return [(answer.ids, answer.ended) for answer in answers]


def _whole(folder: Path) -> list[tuple]:
    """One pass over everything for each token."""
    generator = _generator(folder, {}, 1)
    scorer = generator.scorer
    (model,) = scorer.engine.forward_chunks
    model.eval()
    answers = []
    for prompt in _prompts(generator):
        ids, ended = prompt.ids.tolist(), False
        while len(ids) < len(prompt.ids) + NEW and not ended:
            segment = Segment(np.array([*ids, 0], np.int32), MODALITY_TEXT)
            batch = alone(Scored(segment, prompt.pictures), scorer)
            with torch.no_grad():
                logits = forward_row(model, batch, labels=False)[0, len(ids) - 1, : scorer.tokens.vocab_size]
            logits[[scorer.tokens.image_token_id, scorer.tokens.pad_id]] = float("-inf")
            token = int(logits.argmax())
            ended = token == scorer.tokens.eod_id
            ids += [] if ended else [token]
        answers.append((tuple(ids[len(prompt.ids) :]), ended))
    return answers


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[tuple]:
    return run_ranks(1, _whole, folder)[0]


@pytest.mark.parametrize(
    ("ranks", "parallel", "together"),
    [
        (1, {}, 32),
        (1, {}, 1),
        (2, TP2, 32),
        (2, PP2, 3),
        (2, {"tensor_model_parallel_size": 1}, 2),
        (2, {"context_parallel_size": 2}, 2),
        (4, {**TP2, **PP2}, 32),
    ],
    ids=["alone", "one by one", "tp2", "pp2", "dp2", "cp2", "tp2 x pp2"],
)
def test_greedy_tokens_are_those_of_whole_passes(
    ranks: int, parallel: dict[str, Any], together: int, folder: Path, expected: list[tuple]
) -> None:
    for found in run_ranks(ranks, _cached, folder, parallel, ranks, together, Sampling(NEW)):
        assert found == expected
    assert len({ids for ids, _ in expected}) > 3
    assert all(len(ids) == NEW or ended for ids, ended in expected)


def test_draws_of_a_prompt_do_not_depend_on_its_batch(folder: Path) -> None:
    sampling = Sampling(NEW, temperature=1.0, top_p=0.9, seed=3)
    (one,), (other,) = (run_ranks(1, _cached, folder, {}, 1, together, sampling) for together in (32, 1))
    assert one == other
    (more,) = run_ranks(1, _cached, folder, {}, 1, 32, replace(sampling, seed=4))
    assert more != one


def _refused(folder: Path) -> str:
    generator = _generator(folder, {}, 1)
    try:
        generator.generate([Prompt(np.full(128, 5, np.int32))], Sampling())
    except Exception as error:
        return str(error)
    return ""


def test_a_prompt_without_room_is_refused(folder: Path) -> None:
    assert "prompt 0 has 128 tokens, and the model's rows 128" in run_ranks(1, _refused, folder)[0]


def _command(arguments: list[str]) -> int:
    return main(["generate", *arguments])


def test_the_command(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with tarfile.open(SAMPLE / "images" / "train-00000.tar") as tar:
        name = next(name for name in tar.getnames() if name.endswith(".png"))
        content = tar.extractfile(name)
        assert content is not None
        Image.open(io.BytesIO(content.read())).convert("RGB").save(tmp_path / "one.jpg")
    arguments = [str(folder), "--image", str(tmp_path / "one.jpg"), "--prompt", "a picture of", "--max-new-tokens", "5"]
    assert run_ranks(2, _command, arguments) == [0, 0]
    assert capfd.readouterr().out.startswith("a picture of")
    (tmp_path / "prompts.jsonl").write_text(f'{{"prompt": "Call"}}\n{{"prompt": "a", "image": "{name}", "id": 7}}\n')
    more = [
        str(folder),
        "--prompts",
        str(tmp_path / "prompts.jsonl"),
        "--images",
        str(SAMPLE / "images" / "train-00000.tar"),
    ]
    assert run_ranks(1, _command, [*more, "--output", str(tmp_path / "out.jsonl"), "--stop", "zzz"]) == [0]
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert '"id": 7' in lines[1]
    assert '"answer": ' in lines[1]
    assert run_ranks(1, _command, [str(folder)]) == [2]
