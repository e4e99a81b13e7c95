"""Models that this project trains, with their tokenizer, opened by transformers: folded patches, last norm,
the block of the larger presets; LLaVA's processor and chat template."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from megatron_vlm.config.loading import load_config
from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.interop.checkpoint_writer import write_checkpoint
from megatron_vlm.interop.exporting import plan_export, run_export
from megatron_vlm.interop.importing import plan_import, run_import, with_tokenizer_of
from megatron_vlm.interop.model_tensors import model_tensors
from megatron_vlm.interop.sources import open_source
from megatron_vlm.models.language import padded_vocab_size
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import SAMPLE
from tests.interop.oracles import our_logits, pictures, pixel_values

pytestmark = pytest.mark.distributed

SMALL = {
    "model.language": "{num_layers: 2, hidden_size: 64, num_attention_heads: 4, num_query_groups: 2, ffn_hidden_size: 96}",
    "model.vision": "{num_layers: 2, hidden_size: 32, image_size: 32, patch_size: 8}",
    "data.tokenizer": str(SAMPLE / "tokenizer"),
    "schedule.train_steps": "10",
}
#: the last stage shows pictures of twice the side, so that positions are interpolated
LARGER = {"curriculum.stages.1.image_size": "64"}
#: name -> fields, the class it becomes, the family of its decoder
CASES: dict[str, tuple[dict[str, str], str, str]] = {
    "tiny": ({}, "Lfm2VlForConditionalGeneration", "qwen3"),
    "paper_block": (
        {
            "model.language.normalization": "layernorm_gain",
            "model.language.rotary_percent": "0.5",
            "model.projector.pixel_shuffle": "1",
        },
        "Lfm2VlForConditionalGeneration",
        "stablelm",
    ),
    "llava": (
        {"model.vision.final_norm": "false", "model.projector.pixel_shuffle": "1", "model.language.qk_layernorm": "false"},
        "LlavaForConditionalGeneration",
        "llama",
    ),
    "larger": (LARGER, "Lfm2VlForConditionalGeneration", "qwen3"),
    "larger_llava": (
        {
            **LARGER,
            "model.vision.kind": "clip",
            "model.vision.final_norm": "false",
            "model.projector.pixel_shuffle": "1",
            "model.language.qk_layernorm": "false",
        },
        "LlavaForConditionalGeneration",
        "llama",
    ),
}
TEXT = "A red kite <image> over the sea.\n"


@dataclass
class Outcome:
    architecture: str
    family: str
    logits: np.ndarray
    tokens: list[int]
    wrong_keys: list[str]
    changed: list[str]
    ours: np.ndarray | None = None


def _checkpoint(case: str, folder: Path) -> tuple[Any, Path]:
    overrides = [text for name, value in {**SMALL, **CASES[case][0]}.items() for text in (f"--{name}", value)]
    config = load_config(preset="tiny", overrides=overrides)
    tokenizer = Tokenizer.load(SAMPLE / "tokenizer")
    shapes = model_tensors(config.model, padded_vocab_size(tokenizer.vocab_size, 128))
    generator = torch.Generator().manual_seed(9)
    tensors = (
        (
            name,
            torch.randn(shape, generator=generator) * (0.2 if len(shape) == 1 else 1.3 / shape[-1] ** 0.5)
            + (1.0 if "norm" in name and name.endswith("weight") else 0.0),
        )
        for name, shape in shapes.items()
    )
    facts = {"tokenizer_fingerprint": tokenizer.fingerprint, "step": 10 if case.startswith("larger") else 0}
    return config, write_checkpoint(folder / "run", config, tensors, facts)


@torch.no_grad()
def _exported(case: str, folder: Path) -> Outcome:
    import transformers

    config, _ = _checkpoint(case, folder)
    tokenizer = Tokenizer.load(SAMPLE / "tokenizer")
    plan = plan_export(folder / "run")
    run_export(plan, folder / "out")
    # in again and out again: the same bits
    sources = [open_source(folder / "out")]
    run_import(plan_import(sources, with_tokenizer_of(sources, load_config(preset="tiny"))), folder / "run_again")
    run_export(plan_export(folder / "run_again", family=CASES[case][2]), folder / "out_again")
    before, after = (load_file(folder / name / "model.safetensors") for name in ("out", "out_again"))
    changed = [n for n in before.keys() | after.keys() if not torch.equal(before[n], after[n])]
    words = tokenizer.encode("A red kite over the sea.")
    tokens = [*words[:3], *[tokenizer.image_token_id] * plan.model.image_tokens, *words[3:], tokenizer.eod_id]
    pixels = pixel_values(config, pictures(1, plan.model.vision.image_size))
    given: dict[str, Any] = {"pixel_values": pixels}
    if "llava" not in case:
        grid, count = plan.model.vision.grid, plan.model.vision.patches
        # as Siglip2's processor cuts them: patch by patch, row by row, channels last
        patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(1, count, 192)
        seen = torch.ones(1, count, dtype=torch.long)
        given = {"pixel_values": patches, "spatial_shapes": torch.tensor([[grid, grid]]), "pixel_attention_mask": seen}
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(folder / "out", output_loading_info=True)
    logits = model.eval()(input_ids=torch.tensor([tokens]), **given).logits[0].numpy()
    wrong = [*info["missing_keys"], *info["unexpected_keys"]]
    return Outcome(type(model).__name__, model.config.text_config.model_type, logits, tokens, wrong, changed)


def _processed(folder: Path) -> dict[str, Any]:
    """What AutoProcessor makes of a text with a picture, and of a conversation."""
    from transformers import AutoProcessor, AutoTokenizer

    processor = AutoProcessor.from_pretrained(folder / "llava" / "out")
    photo = Image.fromarray(np.random.default_rng(3).integers(0, 256, (47, 61, 3), dtype=np.uint8))
    made = processor(text=TEXT, images=photo, return_tensors="pt")
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A kite."}]},
    ]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny" / "out")
    return {
        "class": type(processor).__name__,
        "ids": made["input_ids"][0].tolist(),
        "pixels": made["pixel_values"][0].numpy(),
        "chat": processor.apply_chat_template(messages),
        "prompt": processor.apply_chat_template(messages[:1], add_generation_prompt=True),
        "special": [tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)],
        "plain": tokenizer("naïve café 123").input_ids,
    }


def _theirs(folder: Path) -> tuple[dict[str, Outcome], dict[str, Any]]:
    return {case: _exported(case, folder / case) for case in CASES}, _processed(folder)


def _ours(folder: Path, tokens: dict[str, list[int]]) -> dict[str, np.ndarray]:
    image = Tokenizer.load(SAMPLE / "tokenizer").image_token_id
    found = {}
    for case, ids in tokens.items():
        step = folder / case / "run" / "checkpoints" / "step-00000000"
        words = Tokenizer.load(SAMPLE / "tokenizer").vocab_size
        shown = pictures(1, 64 if case.startswith("larger") else 32)
        logits = our_logits(step, torch.tensor([ids]), shown, image, words=words)
        assert logits is not None
        found[case] = logits[:, :words].numpy()
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Outcome], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("own")
    outcomes, processed = run_ranks(1, _theirs, folder)[0]
    tokens = {case: one.tokens for case, one in outcomes.items()}
    for case, ours in run_ranks(1, _ours, folder, tokens)[0].items():
        outcomes[case].ours = ours
    return outcomes, processed


@pytest.mark.parametrize("case", CASES)
def test_transformers_opens_our_models_and_gives_our_logits(both: Any, case: str) -> None:
    found: Outcome = both[0][case]
    assert (found.architecture, found.family) == CASES[case][1:]
    assert found.wrong_keys == []
    assert found.ours is not None
    assert np.abs(found.ours).max() > 1
    np.testing.assert_allclose(found.logits, found.ours, rtol=0, atol=1e-4)
    assert [name for name in found.changed if "post_layernorm" not in name] == []


def test_the_processor_makes_our_ids_and_our_pixels(both: Any) -> None:
    processed = both[1]
    tokenizer = Tokenizer.load(SAMPLE / "tokenizer")
    before, after = TEXT.split("<image>")
    ids = [*tokenizer.encode(before), *[tokenizer.image_token_id] * 16, *tokenizer.encode(after)]
    assert processed["class"] == "LlavaProcessor"
    assert processed["ids"] == ids
    photo = Image.fromarray(np.random.default_rng(3).integers(0, 256, (47, 61, 3), dtype=np.uint8))
    ours = np.asarray(photo.resize((32, 32), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255.0 * 2 - 1
    assert PicturesConfig().resize == "squash"
    assert np.abs(processed["pixels"] - ours).max() < 2.01 / 255  # of two libraries' rounding
    assert processed["chat"] == "User: <image>What is it?\nAssistant: A kite.\n"
    assert processed["prompt"] == "User: <image>What is it?\nAssistant:"


def test_the_tokenizer_has_our_ids(both: Any) -> None:
    tokenizer = Tokenizer.load(SAMPLE / "tokenizer")
    assert both[1]["special"] == [tokenizer.eod_id, tokenizer.pad_id, tokenizer.vocab_size]
    assert both[1]["plain"] == tokenizer.encode("naïve café 123")
