"""Planning packs: seconds of CPU, and how much of the packs is padding, against the least possible and next-fit.

  python benchmarks/bench_packing.py [--documents 1000000] [--capacities 4096 8192] [--ranks 64]
                                     [--micro-batches 8] [--balance-window 8] [--fill] [--runs 7] [--json FILE]

Two mixes of prose (lognormal lengths) and captioned pictures (576 positions and a caption of 10 to 79 words): in one,
prose is short enough to fill what pictures leave; in the other, most documents are of nearly one length, and whole
documents cannot fill packs. L2 is the bound of Martello and Toth: no packing of whole documents has fewer packs. One
thread; times are of the CPU, and a table's ratios are of medians.

trl's `pack_dataset(strategy="bfd")`, where trl is installed (`pip install 'megatron_vlm[bench]'`), plans and gathers the
first --peer-documents of the same documents, of one byte a token, in one batch; `plan_packs` and `assemble` do these two
apart, so its time is beside that of `plan_packs` for the same documents, and its packs beside the packs.

With three budgets pictures have 256 to 2304 patches each. A pack's cost is that of a model of 1 B parameters: 6e9 a
position, 12 x 24 x 2048 a pair of positions, and 2.4e9 a patch. "Worst" is the costliest rank over the mean of the
ranks, less 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measuring import measure, parser, report, table

from megatron_vlm.ops.native import native_operators
from megatron_vlm.ops.pack_balance import CostModel, balance_packs, pack_costs
from megatron_vlm.ops.pack_plan import PackPlan, lower_bound, plan_packs

MIXES = {"prose and pictures": (0.3, 500.0), "mostly pictures": (0.15, 600.0)}
COST = CostModel(per_token=6e9, per_squared_length=12 * 24 * 2048, per_patch=2.4e9)


def documents(count: int, prose: float, median: float) -> tuple[np.ndarray, np.ndarray]:
    """Lengths, and which documents are prose."""
    rng = np.random.default_rng(0)
    is_prose = rng.random(count) < prose
    words = rng.lognormal(np.log(median), 1.0, count).astype(np.int64) + 1
    return np.where(is_prose, words, 576 + rng.integers(10, 80, count)), is_prose


def next_fit(lengths: np.ndarray, capacity: int) -> int:
    packs, room = 0, 0
    for length in lengths.tolist():
        if length > room:
            packs, room = packs + 1, capacity
        room -= length
    return packs


def percent_full(positions: int, packs: int, capacity: int) -> float:
    return 100 * positions / (packs * capacity)


def whole(lengths: np.ndarray, capacity: int, args: Any) -> dict[str, Any]:
    lengths = np.minimum(lengths, capacity)
    total, bound = int(lengths.sum()), lower_bound(lengths, capacity)
    ways: dict[str, Callable[[], object]] = {
        "plan_packs": lambda: plan_packs(lengths, capacity),
        "lower_bound (L2)": lambda: lower_bound(lengths, capacity),
        "next-fit, plain Python": lambda: next_fit(lengths, capacity),
    }
    timings = measure(ways, args.runs, time.process_time)
    packs = plan_packs(lengths, capacity).packs
    simple = next_fit(lengths, capacity)
    print(
        f"  whole documents: {packs} packs, {percent_full(total, packs, capacity):.3f} % full; L2 {bound} "
        f"({100 * (packs / bound - 1):.3f} % more than it); next-fit {percent_full(total, simple, capacity):.2f} % full"
    )
    print(table(timings, "plan_packs"))
    return {"packs": packs, "bound": bound, "next_fit": simple, "timings": timings}


def trl_packs(lengths: np.ndarray, capacity: int, runs: int) -> dict[str, Any]:
    """trl's best-fit decreasing beside ours, on documents that trl must hold; nothing where there is no trl."""
    try:
        from datasets import Dataset
        from trl import pack_dataset
    except ImportError as error:
        print(f"  (trl is left out: {error}; pip install 'megatron_vlm[bench]')")
        return {}
    import pyarrow as pa

    lengths = np.minimum(lengths, capacity)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.zeros(offsets[-1], np.uint8)))
    documents = Dataset(pa.table({"input_ids": tokens}))
    packs: dict[str, int] = {}

    def peer() -> None:
        made = pack_dataset(documents, capacity, "bfd", {"batch_size": len(lengths), "load_from_cache_file": False})
        packs["trl"] = len(made)

    def own() -> None:
        packs["plan_packs"] = plan_packs(lengths, capacity).packs

    timings = measure({"plan_packs": own, "trl pack_dataset": peer}, min(runs, 3), time.process_time)
    print(f"  the first {len(lengths)} of them: {packs['plan_packs']} packs, trl {packs['trl']}")
    print(table(timings, "plan_packs"))
    return {"packs": packs, "timings": timings}


def filled(lengths: np.ndarray, prose: np.ndarray, capacity: int, args: Any) -> dict[str, Any]:
    def plan(fill: bool) -> PackPlan:
        return plan_packs(lengths, capacity, splittable=prose, fill_holes=fill)

    seconds = measure({"filled": lambda: plan(True)}, args.runs, time.process_time)["filled"].median
    result: dict[str, Any] = {"seconds": seconds}
    for name, fill in (("holes left", False), ("holes filled", True)):
        made = plan(fill)
        total = int(made.length.sum())
        waste = 100 - percent_full(total, made.packs, capacity)
        print(
            f"  {name}, long prose split: {waste:.4f} % waste, {made.cut} documents cut, shortest piece of those "
            f"{made.length[made.start > 0].min(initial=capacity)}"
        )
        result[name] = {"waste": waste, "cut": made.cut}
    print(f"  holes filled takes {seconds:.2f} s")
    return result


def balanced(lengths: np.ndarray, prose: np.ndarray, capacity: int, args: Any) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    patches = np.where(prose, 0, 256 * rng.integers(1, 10, len(lengths)))
    images = np.where(prose, 0, 1)
    budgets = {"patch_capacity": capacity * 2, "image_capacity": 8 * capacity // 4096}
    start = time.process_time()
    plan = plan_packs(lengths, capacity, patches=patches, images=images, fill_holes=args.fill, **budgets)
    planned = time.process_time() - start
    costs = rng.permutation(pack_costs(plan, patches, COST))
    if len(costs) < args.ranks * args.micro_batches:
        raise SystemExit(f"{len(costs)} packs do not fill a step: give more --documents or fewer --ranks")
    full = percent_full(int(plan.length.sum()), plan.packs, capacity)
    print(f"  three budgets: {plan.packs} packs, {full:.3f} % full, {planned:.2f} s; costs {spread(costs)}")
    result: dict[str, Any] = {"packs": plan.packs, "full": full, "seconds": planned}
    for window in (1, args.balance_window):
        start = time.process_time()
        order = balance_packs(costs, args.ranks, args.micro_batches, window=window).order
        taken = time.process_time() - start
        by_rank = costs[order].sum(axis=2)
        worst = by_rank.max(axis=1) / by_rank.mean(axis=1) - 1
        overall = by_rank.max(axis=1).sum() / by_rank.mean(axis=1).sum() - 1
        given = costs[: order.size].reshape(by_rank.shape + (-1,)).sum(axis=2)
        before = given.max(axis=1).sum() / given.mean(axis=1).sum() - 1
        print(
            f"    {args.ranks} ranks x {args.micro_batches}, window of {window} steps: worst of all {len(worst)} steps "
            f"{100 * worst.max():.3f} %, median step {100 * np.median(worst):.3f} %, whole run {100 * overall:.3f} % "
            f"(as they come {100 * before:.2f} %); {taken:.2f} s"
        )
        result[f"window {window}"] = {"worst_step": worst.max(), "whole": overall, "unbalanced": before, "seconds": taken}
    return result


def spread(costs: np.ndarray) -> str:
    least, most = np.quantile(costs, [0.01, 0.99]) / costs.mean()
    return f"{least:.2f} to {most:.2f} of the mean (1st to 99th percentile)"


def main() -> None:
    arguments = parser(__doc__, runs=7)
    arguments.add_argument("--documents", type=int, default=1_000_000, help="(default: %(default)s)")
    arguments.add_argument("--capacities", type=int, nargs="+", default=[4096, 8192], help="(default: %(default)s)")
    arguments.add_argument("--peer-documents", type=int, default=100_000, help="given to trl (default: %(default)s)")
    arguments.add_argument("--ranks", type=int, default=64, help="data-parallel ranks (default: %(default)s)")
    arguments.add_argument("--micro-batches", type=int, default=8, help="of a rank in a step (default: %(default)s)")
    arguments.add_argument("--balance-window", type=int, default=8, help="steps that share packs (default: %(default)s)")
    arguments.add_argument("--fill", action="store_true", help="fill holes with three budgets too")
    args = arguments.parse_args()
    if native_operators() is None:
        raise SystemExit("there are no native operators to measure: build them with `make`")
    results: dict[str, Any] = {}
    for name, mix in MIXES.items():
        lengths, prose = documents(args.documents, *mix)
        for capacity in args.capacities:
            print(f"{name}: {args.documents} documents, mean {lengths.mean():.0f}, packs of {capacity}")
            results[f"{name}, {capacity}"] = {
                "whole": whole(lengths, capacity, args),
                "trl": trl_packs(lengths[: args.peer_documents], capacity, args.runs),
                "split": filled(lengths, prose, capacity, args),
                "balanced": balanced(lengths, prose, capacity, args),
            }
            print()
    report(args, results)


if __name__ == "__main__":
    main()
