"""The packed model with pictures against a plain decoder that sees one document at a time; placeholders must match."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.micro_batch import MicroBatch, make_micro_batch
from megatron_vlm.models.vlm import VisionLanguageModel
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT, Segment
from megatron_vlm.parallel import topology
from megatron_vlm.training.engine import build_chunks, unwrap
from megatron_vlm.training.step import forward_row
from tests.distributed.ranks import run_ranks
from tests.distributed.tiny_run import configuration
from tests.models.plain_decoder import token_losses

TOKENS = TokenCounts(vocab_size=300, eod_id=0, image_token_id=1, pad_id=2)
LENGTHS = (17, 1, 40, 33, 25)  # one row of 128 positions, the rest padding
PICTURES_IN = (0, 3)  # the documents that begin with a picture

VARIANTS = {
    "rmsnorm, swiglu, qk-norm": "{num_layers: 4, hidden_size: 64, num_attention_heads: 8, num_query_groups: 4, "
    "ffn_hidden_size: 128}",
    "gain-only layernorm, gelu": "{num_layers: 2, hidden_size: 64, num_attention_heads: 4, num_query_groups: 4, "
    "ffn_hidden_size: 96, normalization: layernorm_gain, activation: gelu, qk_layernorm: false, rotary_base: 500}",
    "layernorm, tied": "{num_layers: 2, hidden_size: 64, num_attention_heads: 8, num_query_groups: 1, "
    "normalization: layernorm, untie_embeddings: false}",
}


def _batch(config: Any) -> MicroBatch:
    rng = np.random.default_rng(6)
    segments = []
    for number, length in enumerate(LENGTHS):
        ids = rng.integers(3, TOKENS.vocab_size, length + 1).astype(np.int32)
        if number in PICTURES_IN:
            ids[: config.model.image_tokens] = TOKENS.image_token_id
        segments.append(Segment(ids, MODALITY_CAPTION if number in PICTURES_IN else MODALITY_TEXT))
    size = config.model.vision.image_size
    pixels = [rng.integers(0, 256, (size, size, 3)).astype(np.uint8) for _ in PICTURES_IN]
    return make_micro_batch([segments], pixels, TOKENS, StepShape(0, 128, 1, 1, size, 1, config.model.image_tokens))


def _model(config: Any) -> VisionLanguageModel:
    top = topology.initialize(config.parallel, 1)
    return unwrap(build_chunks(config, TOKENS, top)[0])


@torch.no_grad()
def _against_plain(config: Any) -> float:
    model = _model(config)
    generator = torch.Generator().manual_seed(8)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # gains other than one
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    batch = _batch(config)
    packed = forward_row(model, batch)[0]
    weights = dict(model.language_model.named_parameters())
    rows = weights["embedding.word_embeddings.weight"][batch.tokens[0]]
    assert batch.picture_input is not None
    rows[batch.row_index[0] >= 0] = model.encode_pictures(batch.picture_input)
    worst, at = 0.0, 0
    for length in LENGTHS:
        labels = batch.labels[0, at : at + length]
        plain = token_losses(config.model.language, weights, rows[at : at + length], labels, config.optimizer.z_loss)
        worst = max(worst, float((packed[at : at + length] - plain).abs().max()))
        at += length
    return worst


@pytest.mark.parametrize("name", VARIANTS)
def test_packed_losses_are_the_plain_decoders(name: str) -> None:
    """5e-6 nats on losses of about 6, fp32, z-loss included."""
    config = configuration(Path("nowhere"), **{"model.language": VARIANTS[name]})
    assert run_ranks(1, _against_plain, config)[0] < 5e-6


@torch.no_grad()
def _wrong_pictures(config: Any, pictures: int) -> str:
    batch = _batch(config)
    assert batch.pixels is not None
    rows = pictures * config.model.image_tokens
    fewer = replace(batch, pixels=batch.pixels[:pictures], pictures=pictures, image_rows=rows)
    with pytest.raises(IndexError) as refusal:
        forward_row(_model(config), fewer)
    return str(refusal.value)


@pytest.mark.parametrize(("pictures", "message"), [(1, "row 4 of 4 image rows"), (0, "row 0 of 0 image rows")])
def test_placeholders_without_their_rows_are_refused(pictures: int, message: str) -> None:
    assert message in run_ranks(1, _wrong_pictures, configuration(Path("nowhere")), pictures)[0]
