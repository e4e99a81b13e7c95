"""Packed attention on the host: documents grouped by length, against a call a document and against one dense mask.

  python benchmarks/bench_attention.py [--positions 2048] [--heads 4] [--head-size 32] [--runs 7] [--json FILE]

Forward and backward of one row of packed documents, causal, fp32, one thread. Captions have 14 to 64 positions (a picture of
4 and its words), prose has lognormal lengths (median 300). All ways give the same numbers, which is checked first.
The plan of the groups is made anew in each call; in training it is made once a micro-batch and shared by all layers.
"""

from __future__ import annotations

import os
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from measuring import measure, parser, report, table
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_vlm.models.host_layers import HostAttention
from megatron_vlm.models.language import packed_row


def captions(rng: np.random.Generator) -> int:
    return int(rng.integers(14, 65))


def prose(rng: np.random.Generator) -> int:
    return int(rng.lognormal(np.log(300), 0.8)) + 1


def bounds_of(lengths: list[int]) -> list[int]:
    return [0, *np.cumsum(lengths).tolist()]


def fill(draw: Callable[[np.random.Generator], int], positions: int) -> list[int]:
    """Lengths of documents that fill a row exactly."""
    rng = np.random.default_rng(0)
    lengths: list[int] = []
    while (left := positions - sum(lengths)) > 0:
        lengths.append(min(left, draw(rng)))
    return lengths


def per_document(query: Tensor, key: Tensor, value: Tensor, bounds: list[int]) -> Tensor:
    """`[t, heads, d]` -> `[t, heads * d]`, one call a document."""
    outputs = []
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        q, k, v = (t[start:end].transpose(0, 1).unsqueeze(0) for t in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        outputs.append(out.squeeze(0).transpose(0, 1).flatten(1))
    return torch.cat(outputs)


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The same with one call over the whole row and a block-diagonal causal mask, bool `[t, t]`."""
    q, k, v = (t.transpose(0, 1).unsqueeze(0) for t in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.squeeze(0).transpose(0, 1).flatten(1)


def main() -> None:
    arguments = parser(__doc__, runs=7)
    arguments.add_argument("--positions", type=int, default=2048, help="of the row (default: %(default)s)")
    arguments.add_argument("--heads", type=int, default=4, help="(default: %(default)s)")
    arguments.add_argument("--head-size", type=int, default=32, help="(default: %(default)s)")
    args = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden = args.heads * args.head_size
    config = TransformerConfig(num_layers=1, hidden_size=hidden, num_attention_heads=args.heads, attention_dropout=0.0)
    attention = HostAttention(config, 1, AttnMaskType.causal, "self")
    tensors = [torch.randn(args.positions, args.heads, args.head_size, requires_grad=True) for _ in range(3)]
    results = {}
    for name, draw in (("captions", captions), ("prose", prose)):
        lengths = fill(draw, args.positions)
        bounds = bounds_of(lengths)
        document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        mask = (document.unsqueeze(0) == document.unsqueeze(1)).tril()
        cu_seqlens, longest = torch.tensor(bounds, dtype=torch.int32), max(lengths)

        def grouped(cu_seqlens: Tensor = cu_seqlens, longest: int = longest) -> Tensor:
            return attention(*tensors, None, packed_seq_params=packed_row(cu_seqlens, longest))

        ways = {
            "grouped by length": grouped,
            "a call a document": lambda bounds=bounds: per_document(*tensors, bounds),
            "dense mask": lambda mask=mask: dense(*tensors, mask),
        }
        expected = ways["a call a document"]()
        for way in ways.values():
            torch.testing.assert_close(way(), expected, rtol=1e-4, atol=1e-5)
        both = {n: lambda way=way: torch.autograd.grad(way().square().sum(), tensors) for n, way in ways.items()}
        timings = measure(both, args.runs)
        print(f"{name}: {len(lengths)} documents of {min(lengths)} to {longest} in {args.positions} positions")
        print(table(timings, "grouped by length") + "\n")
        results[name] = {"documents": len(lengths), "timings": timings}
    report(args, results)


if __name__ == "__main__":
    main()
