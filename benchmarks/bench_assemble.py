"""Assembling packs: the native operator against its numpy reference and against copying its outputs once.

  python benchmarks/bench_assemble.py [--packs 16] [--sequence-length 4096] [--runs 21] [--json FILE]

Prose has lognormal lengths (median 150 tokens); captioned pictures are 64 placeholders and 10 to 60 words each.
A copy of the output arrays is the least that any way of making them could cost. One thread.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from measuring import Timing, measure, parser, report, table

from megatron_vlm.ops.assemble import (
    MODALITY_CAPTION,
    MODALITY_TEXT,
    Segment,
    assemble_packs,
    assemble_packs_reference,
)
from megatron_vlm.ops.native import native_operators

IMAGE, PAD = 1, 2
PICTURE = 64


def prose(rng: np.random.Generator, space: int) -> Segment:
    length = min(space, int(rng.lognormal(5, 1)) + 1)
    return Segment(rng.integers(3, 50000, length + 1).astype(np.int32), MODALITY_TEXT)


def caption(rng: np.random.Generator, space: int) -> Segment:
    length = min(space, PICTURE + int(rng.integers(10, 60)))
    ids = rng.integers(3, 50000, length + 1).astype(np.int32)
    ids[:PICTURE] = IMAGE
    return Segment(ids, MODALITY_CAPTION)


def make_packs(make: Callable[[np.random.Generator, int], Segment], count: int, length: int) -> list[list[Segment]]:
    rng = np.random.default_rng(0)
    packs = []
    for _ in range(count):
        space, segments = length, []
        while space > 2:
            segments.append(make(rng, space))
            space -= len(segments[-1].ids) - 1
        packs.append(segments)
    return packs


def main() -> None:
    arguments = parser(__doc__, runs=21)
    arguments.add_argument("--packs", type=int, default=16, help="packs of a micro-batch (default: %(default)s)")
    arguments.add_argument("--sequence-length", type=int, default=4096, help="positions of a pack (default: %(default)s)")
    args = arguments.parse_args()
    if native_operators() is None:
        raise SystemExit("there are no native operators to measure: build them with `make`")
    results = {}
    for name, make in (("prose", prose), ("captioned pictures", caption)):
        packs = make_packs(make, args.packs, args.sequence_length)
        timings, megabytes = compare(packs, args.sequence_length, args.runs)
        print(
            f"{name}: {args.packs} packs of {args.sequence_length}, {sum(map(len, packs))} documents, {megabytes:.1f} MB out"
        )
        print(table(timings, "native") + "\n")
        results[name] = {"timings": timings, "megabytes": megabytes}
    report(args, results)


def compare(packs: list[list[Segment]], sequence_length: int, runs: int) -> tuple[dict[str, Timing], float]:
    """Timings, and the size of the outputs in MB."""
    sizes = {"sequence_length": sequence_length, "image_token_id": IMAGE, "pad_id": PAD}
    batch = assemble_packs(packs, **sizes)
    outputs = [batch.tokens, batch.labels, batch.loss_mask, batch.position_ids, batch.label_modality]
    timings = measure(
        {
            "native": lambda: assemble_packs(packs, **sizes),
            "numpy reference": lambda: assemble_packs_reference(packs, **sizes),
            "copy of the outputs": lambda: [array.copy() for array in outputs],
        },
        runs,
    )
    return timings, sum(array.nbytes for array in outputs) / 1e6


if __name__ == "__main__":
    main()
