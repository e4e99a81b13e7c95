"""Pictures into patch rows: `patchify` against a memcpy of the rows and against PyTorch.

  python benchmarks/bench_patchify.py [--pictures 64] [--size 224] [--runs 9] [--json FILE]

uint8 pictures in HWC order to normalised rows, channel first, for patches of 14 and 16, in bf16 and fp32:
  torch, permute first    bytes are laid out first, then normalised in place: PyTorch's fastest spelling here
  torch, plain            normalise, reshape, permute, reshape, cast: the usual one (`patchify_reference`)
  torch.compile           of the usual one, where a compiler is found; compiled before it is timed
One thread; all ways with an allocator that keeps its memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measuring import copy_bytes, keep_memory, measure, parser, report, table
from torch import Tensor

from megatron_vlm.ops.native import native_operators
from megatron_vlm.ops.patchify import patchify_squares

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def plain(pixels: Tensor, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    n, height, width, _ = pixels.shape
    rows, columns = height // patch, width // patch
    x = (pixels[:, : rows * patch, : columns * patch].float() - mean) / std
    x = x.reshape(n, rows, patch, columns, patch, 3).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(n, rows * columns, 3 * patch * patch).to(dtype)


def permute_first(pixels: Tensor, patch: int, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    n, height, width, _ = pixels.shape
    rows, columns = height // patch, width // patch
    x = pixels[:, : rows * patch, : columns * patch].reshape(n, rows, patch, columns, patch, 3)
    x = x.permute(0, 1, 3, 5, 2, 4).contiguous().to(dtype)
    shape = (3, 1, 1)
    x.sub_(mean.view(shape).to(dtype)).div_(std.view(shape).to(dtype))
    return x.view(n, rows * columns, 3 * patch * patch)


def ways(pixels: Tensor, patch: int, dtype: torch.dtype, compiled: bool) -> tuple[dict[str, Callable[[], object]], float]:
    """What is timed, and the megabytes that are written."""
    mean, std = torch.tensor(MEAN) * 255, torch.tensor(STD) * 255
    made, _ = patchify_squares(pixels, patch, MEAN, STD, dtype)
    assert torch.equal(made, plain(pixels, patch, mean, std, dtype)), "another result than PyTorch's"
    target = torch.empty_like(made)
    found: dict[str, Callable[[], object]] = {
        "memcpy of the rows": copy_bytes(target, made),
        "patchify": lambda: patchify_squares(pixels, patch, MEAN, STD, dtype),
        "torch, permute first": lambda: permute_first(pixels, patch, mean, std, dtype),
        "torch, plain": lambda: plain(pixels, patch, mean, std, dtype),
    }
    if compiled:
        fast = torch.compile(plain)
        found["torch.compile"] = lambda: fast(pixels, patch, mean, std, dtype)
    return found, made.numel() * made.element_size() / 1e6


def main() -> None:
    arguments = parser(__doc__, runs=9)
    arguments.add_argument("--pictures", type=int, default=64, help="of a batch (default: %(default)s)")
    arguments.add_argument("--size", type=int, default=224, help="pixels of a side (default: %(default)s)")
    arguments.add_argument("--without-compile", action="store_true", help="leave torch.compile out")
    args = arguments.parse_args()
    keep_memory()
    if native_operators() is None:
        raise SystemExit("there are no native operators to measure: build them with `make`")
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (args.pictures, args.size, args.size, 3), dtype=torch.uint8)
    results = {}
    for patch in (14, 16):
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            calls, megabytes = ways(pixels, patch, dtype, not args.without_compile)
            timings = measure(calls, args.runs)
            print(f"patches of {patch}, {name}: {args.pictures} pictures of {args.size} px, {megabytes:.0f} MB out")
            print(table(timings, "memcpy of the rows"))
            median = {way: timing.median for way, timing in timings.items()}
            share = median["memcpy of the rows"] / median["patchify"]
            print(f"patchify: {args.pictures / median['patchify']:.0f} pictures/s, {share:.0%} of memcpy\n")
            results[f"{patch} {name}"] = {"timings": timings, "megabytes": megabytes}
    report(args, results)


if __name__ == "__main__":
    main()
