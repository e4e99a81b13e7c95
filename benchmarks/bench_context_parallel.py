"""How context-parallel ranks share packed rows: attention of the busiest over the mean, keys that are copied, padding.

Four ways to cut a row for n ranks: into 2 n pieces wherever documents lie, of which the dearest goes with the cheapest
(ours); the same pieces, one from the front with one from the end; n slices; and each document in 2 n pieces, padded to a
multiple of that (Transformer Engine), which is even by itself. Counted to the pair of query and key; nothing is timed, so
there is nothing that a busy machine changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from measuring import parser, report

from megatron_vlm.models.context_row import Piece, cut_row, dealt
from megatron_vlm.ops.pack_plan import plan_packs

#: pieces of each rank
Cut = Callable[[Sequence[int], int], list[list[Piece]]]


def ours(lengths: Sequence[int], ranks: int) -> list[list[Piece]]:
    pieces = cut_row(lengths, 2 * ranks)
    return [[pieces[number] for number in pair] for pair in dealt(pieces)]


def both_ends(lengths: Sequence[int], ranks: int) -> list[list[Piece]]:
    pieces = cut_row(lengths, 2 * ranks)
    return [[pieces[rank], pieces[-1 - rank]] for rank in range(ranks)]


def slices(lengths: Sequence[int], ranks: int) -> list[list[Piece]]:
    return [[piece] for piece in cut_row(lengths, ranks)]


def rows_of(capacity: int, median: float, count: int) -> list[list[int]]:
    """Rows of documents with lognormal lengths (sigma 1), cut to a row, packed best fit; padding is one more document."""
    lengths = np.minimum(np.random.default_rng(5).lognormal(np.log(median), 1.0, count).astype(np.int64) + 1, capacity)
    plan = plan_packs(lengths, capacity)
    found = []
    for begin, end in zip(plan.pack_starts[:-1], plan.pack_starts[1:], strict=True):
        row = [int(lengths[number]) for number in plan.document[begin:end]]
        found.append([*row, capacity - sum(row)] if sum(row) < capacity else row)
    return found


def measured(rows: Sequence[Sequence[int]], ranks: int, multiple: int) -> dict[str, Any]:
    """`multiple`: of which Transformer Engine wants each document's length."""
    found: dict[str, Any] = {}
    cuts: dict[str, Cut] = {"ours": ours, "both ends": both_ends, "slices": slices}
    for name, cut in cuts.items():
        busiest, keys = [], []
        for row in rows:
            parts = cut(row, ranks)
            work = [sum(piece.pairs for piece in part) for part in parts]
            assert sum(work) == sum(n * (n + 1) // 2 for n in row)
            busiest.append(max(work) * ranks / sum(work))
            keys.append(max(sum(piece.end - piece.first for piece in part) for part in parts) * ranks / sum(row))
        found[name] = {"busiest": float(np.mean(busiest)), "worst row": max(busiest), "keys": float(np.mean(keys))}
    lengths = [length for row in rows for length in row]
    found["padding"] = sum(-length % multiple for length in lengths) / sum(lengths)
    return found


def main() -> None:
    arguments = parser(__doc__, runs=1)
    arguments.add_argument(
        "--tensor", type=int, default=8, help="tensor-parallel ranks with sequence parallelism, for the padding"
    )
    arguments.add_argument("--documents", type=int, default=20_000, help="of each mix (default: %(default)s)")
    args = arguments.parse_args()
    everything = {}
    print("attention of the busiest rank / mean (worst row); keys / own positions, busiest rank; padding of documents cut")
    for capacity, median in ((32768, 600), (131072, 600), (131072, 8000), (131072, 1e9)):
        documents = min(args.documents, 64 if median == 1e9 else args.documents)
        rows = rows_of(capacity, median, documents)[:200]
        shown = "one document a row" if median == 1e9 else f"median {median:,.0f} tokens"
        print(f"rows of {capacity:,}, {shown} ({sum(map(len, rows)) / len(rows):.0f} documents a row)")
        for ranks in (2, 8):
            found = measured(rows, ranks, 2 * ranks * args.tensor)
            everything[f"{capacity}, {median}, {ranks}"] = found
            print(
                f"  {ranks} ranks  "
                + "  ".join(
                    f"{name} {found[name]['busiest']:.2f} ({found[name]['worst row']:.2f}), keys {found[name]['keys']:.2f}"
                    for name in ("ours", "both ends", "slices")
                )
                + f"  padding {100 * found['padding']:.1f} %"
            )
    report(args, everything)


if __name__ == "__main__":
    main()
