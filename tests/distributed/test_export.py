"""What is exported is what transformers computes: the same logits, the same greedy tokens, whatever layout saved it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_vlm.cli.main import main
from megatron_vlm.evaluation.generation import Generator
from megatron_vlm.evaluation.sampling import Sampling
from megatron_vlm.evaluation.scorer import Scorer, layout_for
from megatron_vlm.ops.assemble import MODALITY_TEXT, Segment
from megatron_vlm.training.checkpoint import checkpoint_config, find_checkpoint
from megatron_vlm.training.loop import Run
from megatron_vlm.training.scoring import Scored
from megatron_vlm.training.step import forward_row
from tests.distributed.alone import alone
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import PP2, TP2, configuration

pytestmark = pytest.mark.distributed

TEXT = "The state of the union is strong, and a picture of a cat"
LARGE = {"schedule.lr": 1e-5, "schedule.min_lr": 0, "model.language.init_std": 0.3}
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any], str]] = {
    "qwen3, tp2": (2, TP2, {}, "Qwen3ForCausalLM"),
    "llama, pp2": (2, PP2, {"model.language.qk_layernorm": False}, "LlamaForCausalLM"),
    "tied, with updates": (
        1,
        {},
        {"model.language.untie_embeddings": False, "model.lora": "{rank: 4, alpha: 64}", "schedule.lr": 1e-2},
        "Qwen3ForCausalLM",
    ),
}


def _train(config: Any) -> None:
    Run(config).train()


def _ours(folder: Path) -> tuple[np.ndarray, tuple[int, ...], list[int]]:
    """Logits of a text, and what is generated after it."""
    checkpoint = find_checkpoint(folder)
    scorer = Scorer.open(checkpoint, layout_for(checkpoint_config(checkpoint), 1, {}, generates=True))
    ids = scorer.tokenizer.encode(TEXT)
    document = Scored(Segment(np.array([*ids, 0], np.int32), MODALITY_TEXT))
    batch = alone(document, scorer)
    (model,) = scorer.engine.forward_chunks
    model.eval()
    with torch.no_grad():
        logits = forward_row(model, batch, labels=False)[0, : len(ids), : scorer.tokens.vocab_size]
    generator = Generator(scorer)
    (answer,) = generator.generate([generator.prompt(TEXT)], Sampling(12))
    return logits.numpy(), answer.ids, ids


@pytest.mark.parametrize("name", [n if "qwen3" in n else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_transformers_says_the_same(name: str, data: Path, tmp_path: Path) -> None:
    ranks, parallel, fields, architecture = CASES[name]
    folder, exported = tmp_path / "run", tmp_path / "exported"
    run_ranks(ranks, _train, configuration(data, parallel, **{**LARGE, **fields, "logging.directory": folder}))
    ((logits, generated, ids),) = run_ranks(1, _ours, folder)
    assert (
        main(["convert", "export", str(folder), "--to", str(exported), "--part", "language", "--shard-size", "300KB"]) == 0
    )
    assert json.loads((exported / "config.json").read_text())["architectures"] == [architecture]
    assert len(list(exported.glob("model-*.safetensors"))) > 2

    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    assert type(model).__name__ == architecture
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert tokenizer(TEXT, add_special_tokens=False)["input_ids"] == ids
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(theirs - logits).max() < 1e-4 * max(1.0, np.abs(logits).max())
    # neither may say what has no meaning in text
    banned = [[tokenizer.convert_tokens_to_ids(token)] for token in ("<image>", "<|pad|>")]
    out = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, bad_words_ids=banned)[
        0, len(ids) :
    ].tolist()
    assert tuple(token for token in out if token != tokenizer.eos_token_id) == generated
