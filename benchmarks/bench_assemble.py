"""Assembling packs: the native operator against its numpy reference and against copying its outputs once.

  python benchmarks/bench_assemble.py [--packs 16] [--sequence-length 4096] [--runs 21]

Prints medians over the runs, one thread, and the ratios between them; machines are noisy, ratios less so.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from megatron_vlm.ops.assemble import MODALITY_TEXT, Segment, assemble_packs, assemble_packs_reference


def median_seconds(call: Callable[[], object], runs: int) -> float:
    call()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=21)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    packs = []
    for _ in range(args.packs):
        space, segments = args.sequence_length, []
        while space > 2:
            length = min(space, int(rng.lognormal(5, 1)) + 1)
            segments.append(Segment(rng.integers(3, 50000, length + 1).astype(np.int32), MODALITY_TEXT))
            space -= length
        packs.append(segments)
    ids = {"sequence_length": args.sequence_length, "image_token_id": 1, "pad_id": 2}
    batch = assemble_packs(packs, **ids)
    arrays = [batch.tokens, batch.labels, batch.loss_mask, batch.position_ids, batch.label_modality]
    native = median_seconds(lambda: assemble_packs(packs, **ids), args.runs)
    reference = median_seconds(lambda: assemble_packs_reference(packs, **ids), args.runs)
    copy = median_seconds(lambda: [array.copy() for array in arrays], args.runs)
    print(f"{args.packs} packs of {args.sequence_length}, {sum(map(len, packs))} segments; medians of {args.runs} runs")
    print(f"native {native * 1e3:8.3f} ms   numpy reference {reference * 1e3:8.3f} ms   copy {copy * 1e3:8.3f} ms")
    print(f"native is {reference / native:.1f} x as fast as the reference, and takes {native / copy:.1f} x a copy")


if __name__ == "__main__":
    main()
