"""Image rows into word rows: `fuse_embeddings` against a memcpy of its output and against the ways of others.

  python benchmarks/bench_fusion.py [--batch 8] [--sequence-length 4096] [--hidden 2048] [--runs 9] [--json FILE]

A batch with pictures of 256 rows, a quarter of all positions (--share). `fuse_embeddings` includes the lookup of the words.
Of the others, the lookup is counted too unless the line says "merge alone":
  lookup + index_copy     torch.nn.functional.embedding, transposed, then index_copy at known positions
  masked_scatter          its cheapest spelling, with a mask that is made once
  LlavaModel              transformers' `LlavaModel.get_placeholder_mask` and its masked_scatter, where it is installed
  LLaVAModel              megatron-core's `LLaVAModel._preprocess_data`, labels and loss mask included
  MIMO                    megatron-core's `align_embeddings_by_token_positions`, where megatron-core has it
Backward: gradients of the embedding and of the image rows. What is compared is checked to be equal first. One thread; all
ways with an allocator that keeps its memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from measuring import copy_bytes, keep_memory, measure, parser, report, table
from torch import Tensor
from torch.nn.functional import embedding

from megatron_vlm.ops.fuse import fuse_embeddings
from megatron_vlm.ops.native import native_operators

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROWS = 256  # of a picture
IMAGE = -200  # LLaVAModel's placeholder


class Batch:
    """Tokens with expanded placeholders, and the same batch as LLaVAModel wants it."""

    def __init__(self, batch: int, length: int, hidden: int, vocab: int, share: float, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        pictures = max(1, round(length * share / ROWS))
        # words by Zipf's law, as in prose
        frequency = 1.0 / torch.arange(1, vocab + 1, dtype=torch.float64)
        draw = torch.multinomial(frequency, batch * length, replacement=True, generator=generator)
        self.tokens = torch.randperm(vocab, generator=generator)[draw].view(batch, length)
        self.row_index = torch.full((batch, length), -1, dtype=torch.int32)
        short = []
        for sequence in range(batch):
            gap = (length - pictures * ROWS) // pictures
            pieces = []
            for picture in range(pictures):
                start = picture * (gap + ROWS) + gap // 2
                first = (sequence * pictures + picture) * ROWS
                self.row_index[sequence, start : start + ROWS] = torch.arange(first, first + ROWS, dtype=torch.int32)
                before = start - gap if picture else 0
                pieces += [self.tokens[sequence, before:start], torch.tensor([IMAGE])]
            pieces.append(self.tokens[sequence, start + ROWS :])
            short.append(torch.cat(pieces))
        self.short = torch.stack(short)
        self.pictures = batch * pictures
        self.weight = torch.randn(vocab, hidden, generator=generator).to(dtype).requires_grad_()
        self.rows = torch.randn(self.pictures * ROWS, hidden, generator=generator).to(dtype).requires_grad_()
        # of the [s, b] order of the decoder's input
        flat = self.row_index.t().reshape(-1)
        self.positions = torch.nonzero(flat >= 0).squeeze(1)
        self.order = flat[self.positions].long()
        # a placeholder that no word is, as LlavaModel and MIMO find their positions by it
        self.placeholder = vocab
        self.placed = torch.where(self.row_index >= 0, vocab, self.tokens)
        self.mask = (self.row_index >= 0).unsqueeze(-1)
        self.slots = torch.empty(self.pictures * ROWS, dtype=torch.int64)
        self.slots[self.order] = self.positions
        self.labels = torch.zeros_like(self.short)
        self.loss_mask = torch.ones(self.short.shape)
        self.tiles = torch.ones(self.pictures, dtype=torch.int32)


def ours(b: Batch) -> Tensor:
    return fuse_embeddings(b.tokens, b.weight, b.rows, b.row_index)


def index_copy(b: Batch) -> Tensor:
    x = embedding(b.tokens, b.weight).transpose(0, 1).contiguous()
    return x.view(-1, x.size(-1)).index_copy(0, b.slots, b.rows).view_as(x)


def masked_scatter(b: Batch, words: Tensor | None = None) -> Tensor:
    x = embedding(b.tokens, b.weight) if words is None else words
    return x.masked_scatter(b.mask.expand_as(x), b.rows)


def transformers_llava(b: Batch) -> Tensor:
    """The lines of `LlavaModel.forward` between the lookup and the language model."""
    from transformers import LlavaModel

    model: Any = SimpleNamespace(config=SimpleNamespace(image_token_id=b.placeholder))
    x = embedding(b.tokens, b.weight)
    rows = b.rows.view(b.pictures, ROWS, -1)
    mask = LlavaModel.get_placeholder_mask(model, b.placed, x, rows)
    return x.masked_scatter(mask, rows)


def llava(b: Batch, words: Tensor | None = None) -> Tensor:
    from megatron.core.models.multimodal.llava_model import LLaVAModel

    model: Any = SimpleNamespace(
        add_decoder=True,
        pre_process=True,
        post_process=True,
        img_seq_len=ROWS,
        context_parallel_lm=1,
        _language_is_pipeline_parallel=False,
        _language_max_sequence_length=b.tokens.size(1),
    )
    words = embedding(b.short.clamp(min=0), b.weight) if words is None else words
    images = b.rows.view(b.pictures, ROWS, -1).transpose(0, 1)
    made, _, _ = LLaVAModel._preprocess_data(
        model, images, words, b.short, b.loss_mask, b.labels, False, None, IMAGE, b.tiles
    )
    return made


def mimo(b: Batch, words: Tensor) -> Tensor:
    from megatron.core.models.mimo.model.base import MimoModel

    model: Any = SimpleNamespace(special_token_ids={"images": b.placeholder})
    return MimoModel.align_embeddings_by_token_positions(
        model, {"text": words, "images": b.rows}, b.placed, {"images": b.placeholder}
    )


def forward_ways(b: Batch, result: Tensor) -> dict[str, Callable[[], object]]:
    words = embedding(b.tokens, b.weight).detach()
    short_words = embedding(b.short.clamp(min=0), b.weight).detach()
    text_words = b.weight.detach()[b.tokens[b.row_index < 0]]
    target = torch.empty_like(result)
    ways: dict[str, Callable[[], object]] = {
        "memcpy of the output": copy_bytes(target, result),
        "fuse_embeddings": lambda: ours(b),
        "lookup + index_copy": lambda: index_copy(b),
        "masked_scatter": lambda: masked_scatter(b),
        "masked_scatter, merge alone": lambda: masked_scatter(b, words),
        "LLaVAModel": lambda: llava(b),
        "LLaVAModel, merge alone": lambda: llava(b, short_words),
    }
    for way, made in (
        (index_copy, index_copy(b)),
        (masked_scatter, masked_scatter(b).transpose(0, 1)),
        (llava, llava(b)),
    ):
        assert torch.equal(made, result), f"{way.__name__} gives another result"
    optional: dict[str, Callable[[], Tensor]] = {
        "transformers LlavaModel": lambda: transformers_llava(b).transpose(0, 1),
        "MIMO, merge alone": lambda: mimo(b, text_words),
    }
    for name, way in optional.items():
        try:
            assert torch.equal(way(), result), f"{name} gives another result"
            ways[name] = way
        except (ImportError, AttributeError, TypeError) as error:
            print(f"({name} is left out: {error})")
    return ways


def backward_ways(b: Batch, result: Tensor) -> dict[str, Callable[[], object]]:
    """Backward alone, through graphs that are kept."""
    gradient = torch.randn_like(result)
    target = torch.empty_like(result)
    by_batch = gradient.transpose(0, 1).contiguous()
    words = embedding(b.tokens, b.weight).detach().requires_grad_()
    made = {
        "fuse_embeddings": (ours(b), gradient, (b.weight, b.rows)),
        "lookup + index_copy": (index_copy(b), gradient, (b.weight, b.rows)),
        "masked_scatter": (masked_scatter(b), by_batch, (b.weight, b.rows)),
        "masked_scatter, merge alone": (masked_scatter(b, words), by_batch, (words, b.rows)),
        "LLaVAModel": (llava(b), gradient, (b.weight, b.rows)),
    }
    ways: dict[str, Callable[[], object]] = {"memcpy of the output": copy_bytes(target, result)}
    for name, (out, of_out, inputs) in made.items():
        ways[name] = lambda out=out, of_out=of_out, inputs=inputs: torch.autograd.grad(
            out, inputs, of_out, retain_graph=True
        )
    expected = torch.autograd.grad(
        made["masked_scatter"][0].float(), (b.weight, b.rows), by_batch.float(), retain_graph=True
    )
    found = torch.autograd.grad(made["fuse_embeddings"][0], (b.weight, b.rows), gradient, retain_graph=True)
    assert torch.equal(found[1], expected[1]), "another gradient of the image rows"
    if result.dtype == torch.float32:
        torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    return ways


def main() -> None:
    arguments = parser(__doc__, runs=9)
    arguments.add_argument("--batch", type=int, default=8, help="sequences (default: %(default)s)")
    arguments.add_argument("--sequence-length", type=int, default=4096, help="positions (default: %(default)s)")
    arguments.add_argument("--hidden", type=int, default=2048, help="width of a row (default: %(default)s)")
    arguments.add_argument("--vocab", type=int, default=32768, help="words of the shard (default: %(default)s)")
    arguments.add_argument("--share", type=float, default=0.25, help="positions that are pictures' (default: %(default)s)")
    arguments.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="(default: both)")
    args: argparse.Namespace = arguments.parse_args()
    keep_memory()
    if native_operators() is None:
        raise SystemExit("there are no native operators to measure: build them with `make`")
    torch.set_num_threads(1)
    results = {}
    for name in args.dtypes:
        batch = Batch(args.batch, args.sequence_length, args.hidden, args.vocab, args.share, DTYPES[name])
        result = ours(batch)
        megabytes = result.numel() * result.element_size() / 1e6
        print(f"{name}, batch {args.batch} x {args.sequence_length}, hidden {args.hidden}: {megabytes:.0f} MB out")
        with torch.no_grad():
            forward = measure(forward_ways(batch, result), args.runs)
        print("forward\n" + table(forward, "memcpy of the output"))
        backward = measure(backward_ways(batch, result.detach()), args.runs)
        print("backward\n" + table(backward, "memcpy of the output") + "\n")
        results[name] = {"forward": forward, "backward": backward, "megabytes": megabytes}
    report(args, results)


if __name__ == "__main__":
    main()
