"""open_lm's tensors come in with the logits of its block, written here in plain PyTorch after its published model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_vlm.interop.exporting import plan_export
from megatron_vlm.interop.importing import plan_import, run_import
from megatron_vlm.interop.mapping import Unexpressed
from megatron_vlm.interop.sources import open_source
from tests.distributed.ranks import run_ranks
from tests.interop.oracles import ROWS, base_config, our_logits, word_ids

HIDDEN, HEADS, LAYERS = 64, 4, 2
WIDTH = 256 * -(-int(2 * 4 * HIDDEN / 3) // 256)
PARAMS: dict[str, Any] = {
    "hidden_dim": HIDDEN,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "vocab_size": ROWS,
    "model_norm": "gain_only_lp_layer_norm",
    "qk_norm": True,
    "post_embed_norm": False,
    "weight_tying": False,
}


def _tensors(qk_norm: bool) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (ROWS, HIDDEN),
        "output.weight": (ROWS, HIDDEN),
        "norm.weight": (HIDDEN,),
    }
    for number in range(LAYERS):
        layer = f"layers.{number}."
        shapes |= {
            f"{layer}attention_norm.weight": (HIDDEN,),
            f"{layer}ffn_norm.weight": (HIDDEN,),
            f"{layer}attention.in_proj.weight": (3 * HIDDEN, HIDDEN),
            f"{layer}attention.out_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}feed_forward.w12.weight": (2 * WIDTH, HIDDEN),
            f"{layer}feed_forward.w3.weight": (HIDDEN, WIDTH),
            f"{layer}attention.pos_embed.inv_freq": (HIDDEN // HEADS // 2,),
        }
        if qk_norm:
            shapes |= {f"{layer}attention.{name}_norm.weight": (HIDDEN,) for name in "qk"}
    generator = torch.Generator().manual_seed(8)
    return {
        name: torch.randn(shape, generator=generator) * (0.2 if len(shape) == 1 else 1.3 / shape[-1] ** 0.5)
        + (1.0 if "norm" in name else 0.0)
        for name, shape in shapes.items()
    }


def _rotated(x: Tensor) -> Tensor:
    """`[t, heads, d]`: halves of a head turn by position * 10000^(-2i/d)."""
    size = x.size(-1)
    angles = torch.outer(torch.arange(x.size(0)).float(), 10000.0 ** (-torch.arange(0, size, 2) / size)).unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def _plain_logits(weights: dict[str, Tensor], qk_norm: bool) -> Tensor:
    """Norms of query and key before the split into heads."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[name], None, 1e-5)

    x = weights["tok_embeddings.weight"][word_ids()[0]]
    for number in range(LAYERS):
        layer = f"layers.{number}."
        mixed = norm(x, f"{layer}attention_norm.weight") @ weights[f"{layer}attention.in_proj.weight"].T
        query, key, value = mixed.chunk(3, dim=-1)
        if qk_norm:
            query, key = (norm(t, f"{layer}attention.{n}_norm.weight") for t, n in ((query, "q"), (key, "k")))
        heads = [t.view(len(x), HEADS, -1) for t in (query, key, value)]
        query, key, value = (t.transpose(0, 1) for t in (_rotated(heads[0]), _rotated(heads[1]), heads[2]))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(0, 1).flatten(1)
        x = x + attended @ weights[f"{layer}attention.out_proj.weight"].T
        gate, up = (norm(x, f"{layer}ffn_norm.weight") @ weights[f"{layer}feed_forward.w12.weight"].T).chunk(2, dim=-1)
        x = x + (F.silu(gate) * up) @ weights[f"{layer}feed_forward.w3.weight"].T
    return norm(x, "norm.weight") @ weights["output.weight"].T


def _ours(checkpoint: Path, parallel: dict[str, Any]) -> np.ndarray:
    logits = our_logits(checkpoint, word_ids(), parallel=parallel)
    assert logits is not None
    return logits[:, :ROWS].numpy()


@pytest.mark.distributed
@pytest.mark.parametrize(("qk_norm", "ranks"), [(True, 1), (False, 1), (True, 2)])
def test_logits_are_those_of_the_published_block(tmp_path: Path, qk_norm: bool, ranks: int) -> None:
    """From a .pt as open_lm saves it, with `module.` before each name; in one part, and in two."""
    tensors = _tensors(qk_norm)
    folder = tmp_path / "open_lm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**PARAMS, "qk_norm": qk_norm}))
    torch.save(
        {"epoch": 3, "name": "m", "state_dict": {f"module.{name}": value for name, value in tensors.items()}},
        folder / "epoch_3.pt",
    )
    plan = plan_import([open_source(folder)], base_config())
    assert [name for _, name, _ in plan.left_over] == [f"model.layers.{i}.attention.pos_embed.inv_freq" for i in range(2)]
    checkpoint = run_import(plan, tmp_path / "run")
    found = run_ranks(ranks, _ours, checkpoint, {"tensor_model_parallel_size": ranks})
    for one in found:
        np.testing.assert_allclose(one, _plain_logits(tensors, qk_norm).numpy(), rtol=0, atol=1e-4)


def test_it_does_not_go_out_where_no_class_has_its_norm(tmp_path: Path) -> None:
    folder = tmp_path / "open_lm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "openlm", "params_args_dict": PARAMS}))
    torch.save(_tensors(True), folder / "pytorch_model.bin")
    run_import(plan_import([open_source(folder)], base_config()), tmp_path / "run")
    with pytest.raises(Unexpressed, match="stablelm: model.language.qk_layernorm_full_width is True"):
        plan_export(tmp_path / "run", "language")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"positional_embedding_type": "head_rotary"}, "positional_embedding_type 'head_rotary'"),
        ({"ffn_type": "gemma_geglu"}, "ffn_type 'gemma_geglu'"),
        ({"post_embed_norm": True}, "post_embed_norm"),
        ({"model_norm": "default_layer_norm"}, "qk_norm with biases"),
    ],
)
def test_other_blocks_are_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = tmp_path / "open_lm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**PARAMS, **change}))
    with pytest.raises(Unexpressed, match=reason):
        open_source(folder)
