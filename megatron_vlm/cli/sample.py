"""Draw documents of a dataset into a smaller one.

  megatron-vlm sample data/images --documents 10000 --output data/images-10k
  megatron-vlm sample data/prose --tokens 100000000 --seed 7 --output data/prose-100m
  megatron-vlm sample data/prose --fraction 0.01 --output data/prose-1pct

Documents are drawn without replacement and keep their order. The same dataset, seed and size give the same bytes, and a
larger sample of one seed holds every smaller one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="a dataset, a path without suffix")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--documents", type=int, metavar="N", help="draw N documents")
    size.add_argument("--tokens", type=int, metavar="N", help="draw documents until they have N tokens of text or more")
    size.add_argument("--fraction", type=float, metavar="F", help="draw this share of the documents, such as 0.01")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws others (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="the new dataset, a path without suffix")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that hash (default: the cores)")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.cli.dataset_argument import checked_workers, copy_bar, dataset_prefix, describe_copy
    from megatron_vlm.data.sampling import SampleSize, sample_dataset

    begun = time.monotonic()
    size = SampleSize(args.documents, args.tokens, args.fraction)
    prefix, output = dataset_prefix(args.prefix), dataset_prefix(args.output)
    workers = checked_workers(args.workers)
    with copy_bar(output.name) as (advance, total):
        known = sample_dataset(prefix, output, size, seed=args.seed, workers=workers, advance=advance, total=total)
    drawn = f"of {known['sampled_from']['documents']:,}"
    print(describe_copy(output, known, drawn, time.monotonic() - begun))
    return 0
