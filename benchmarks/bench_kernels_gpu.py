"""The CUDA operators on a GPU: bandwidth of each, as a share of what a copy from device to device reaches.

  python benchmarks/bench_kernels_gpu.py [--sequence-length 4096] [--hidden 4096] [--vocabulary 152064] [--shards 8]
                                         [--pictures 64] [--runs 21] [--json FILE]

Bytes are what an operator has to read and write at least, once each; a copy reads and writes its size. Between two runs
the caches are swept, as they are in training. bf16.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from measuring import parser, report

from megatron_vlm.ops.kernels import Kernels, cuda_kernels

DTYPE = torch.bfloat16
SIZE = 2
PATCH = 14
SIDE = 27  # patches along a picture of 384 pixels: a rest of 6 pixels is left out
#: more than the second-level cache of any GPU so far
SWEEP_BYTES = 512 << 20


def main() -> None:
    arguments = parser(__doc__, runs=21)
    arguments.add_argument("--sequence-length", type=int, default=4096, help="positions (default: %(default)s)")
    arguments.add_argument("--batch", type=int, default=4, help="sequences of a micro-batch (default: %(default)s)")
    arguments.add_argument("--hidden", type=int, default=4096, help="hidden size (default: %(default)s)")
    arguments.add_argument("--vocabulary", type=int, default=152064, help="words (default: %(default)s)")
    arguments.add_argument("--shards", type=int, default=8, help="shards of the vocabulary (default: %(default)s)")
    arguments.add_argument("--pictures", type=int, default=64, help="pictures of 384 x 384 (default: %(default)s)")
    args = arguments.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench_kernels_gpu: there is no CUDA device here, so there is nothing to measure")
    kernels = cuda_kernels()
    if kernels is None:
        sys.exit("bench_kernels_gpu: the CUDA operators are not built; run `make` where nvcc is")

    torch.manual_seed(0)
    ways = {"copy from device to device": copy(), **fusion(kernels, args), "patchify": patches(kernels, args)}
    sweep = torch.empty(SWEEP_BYTES, dtype=torch.uint8, device="cuda")
    seconds = {name: time(call, sweep, args.runs) for name, (call, _) in ways.items()}
    rates = {name: moved / statistics.median(seconds[name]) for name, (_, moved) in ways.items()}
    base = rates["copy from device to device"]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'':<30}{'MB':>10}{'us':>10}{'min':>10}{'GB/s':>10}{'of a copy':>12}")
    results = {}
    for name, (_, moved) in ways.items():
        median, least = statistics.median(seconds[name]), min(seconds[name])
        numbers = f"{moved / 1e6:>10.1f}{median * 1e6:>10.1f}{least * 1e6:>10.1f}{rates[name] / 1e9:>10.0f}"
        print(f"{name:<30}{numbers}{rates[name] / base:>11.0%}")
        results[name] = {"bytes": moved, "seconds": seconds[name], "bytes_per_second": rates[name]}
    report(args, {"device": torch.cuda.get_device_name(), **results})


def time(call: Callable[[], object], sweep: torch.Tensor, runs: int) -> list[float]:
    """Seconds of each of `runs` calls on the device, after three to warm up."""
    for _ in range(3):
        call()
    seconds = []
    for _ in range(runs):
        sweep.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return seconds


Way = tuple[Callable[[], object], int]


def copy() -> Way:
    source = torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.numel()


def fusion(kernels: Kernels, args: argparse.Namespace) -> dict[str, Way]:
    """A batch of which a third is pictures, and one shard of the vocabulary. Few words come often, as in texts."""
    shape, row_bytes = (args.batch, args.sequence_length), args.hidden * SIZE
    count, shard = args.batch * args.sequence_length, args.vocabulary // args.shards
    tokens = (torch.rand(shape, device="cuda") ** 4 * args.vocabulary).long()
    is_row = torch.rand(shape, device="cuda") < 1 / 3
    row_count = int(is_row.sum())
    row_index = torch.full(shape, -1, dtype=torch.int32, device="cuda")
    row_index[is_row] = torch.arange(row_count, dtype=torch.int32, device="cuda")
    weight = torch.randn(shard, args.hidden, dtype=DTYPE, device="cuda")
    rows = torch.randn(row_count, args.hidden, dtype=DTYPE, device="cuda")
    out = torch.empty(args.sequence_length, args.batch, args.hidden, dtype=DTYPE, device="cuda")
    of_weight, of_rows = torch.empty_like(weight), torch.empty_like(rows)
    workspace = torch.empty(row_count, dtype=torch.int64, device="cuda")
    fault = torch.zeros(1, dtype=torch.int32, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    local = tokens.masked_fill(is_row, -1).T.reshape(-1)
    words, places = torch.sort(local, stable=True)
    is_word = (local >= 0) & (local < shard)
    in_shard, distinct = int(is_word.sum()), int(local[is_word].unique().numel())
    slice_of = {"first_position": 0, "fault": fault, "stream": stream}

    def forward() -> None:
        sizes = {"vocab_start": 0, "vocab_size": args.vocabulary, "rows_here": True}
        kernels.fuse_forward(out, tokens, row_index, weight, rows, **sizes, **slice_of)

    def backward_rows() -> None:
        kernels.fuse_backward_rows(of_rows, workspace, out, row_index, **slice_of)

    def backward_weight() -> None:
        kernels.fuse_backward_weight(of_weight, out, words, places, stream=stream)

    return {
        # a word that comes twice is read from the cache
        "fuse, forward": (forward, (count + row_count + distinct) * row_bytes + count * 12),
        "fuse, gradient of rows": (backward_rows, 2 * row_count * row_bytes + count * 4 + row_count * 16),
        "fuse, gradient of weight": (backward_weight, (shard + in_shard) * row_bytes + in_shard * 16),
    }


def patches(kernels: Kernels, args: argparse.Namespace) -> Way:
    picture_bytes, each = 3 * 384 * 384, SIDE * SIDE
    pixels = torch.randint(0, 256, (args.pictures * picture_bytes,), dtype=torch.uint8, device="cuda")
    table = [[n * picture_bytes, 384, 384, n * each] for n in range(args.pictures)]
    pictures = torch.tensor(table, dtype=torch.int64, device="cuda")
    out = torch.empty(args.pictures * each, 3 * PATCH * PATCH, dtype=DTYPE, device="cuda")
    coordinates = torch.empty(args.pictures * each, 2, dtype=torch.int32, device="cuda")
    fault = torch.zeros(1, dtype=torch.int32, device="cuda")
    stream = torch.cuda.current_stream().cuda_stream
    scale = {"mean_255": [127.5] * 3, "std_255": [127.5] * 3}

    def call() -> None:
        sizes = {"patch_size": PATCH, "group": 1, "fault": fault, "stream": stream}
        kernels.patchify(out, coordinates, pixels, pictures, **sizes, **scale)

    seen = args.pictures * 3 * (SIDE * PATCH) ** 2
    return call, seen + out.numel() * SIZE + coordinates.numel() * 4


if __name__ == "__main__":
    main()
