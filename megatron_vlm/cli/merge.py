"""Put datasets together into one.

  megatron-vlm merge data/images-0 data/images-1 --output data/images

Documents keep their order, datasets that of the command line. They must have one dtype, be all multimodal or all text, and
come of one tokenizer. OUTPUT.json says what was merged, and has checksums (`megatron-vlm validate`).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefixes", type=Path, nargs="+", metavar="PREFIX", help="datasets, each a path without suffix")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="the new dataset, a path without suffix")
    parser.add_argument("--force", action="store_true", help="merge datasets of different tokenizers")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that hash (default: the cores)")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.cli.dataset_argument import checked_workers, copy_bar, dataset_prefix, describe_copy
    from megatron_vlm.data.merging import merge_datasets

    begun = time.monotonic()
    output, prefixes = dataset_prefix(args.output), [dataset_prefix(prefix) for prefix in args.prefixes]
    workers = checked_workers(args.workers)
    with copy_bar(output.name) as (advance, total):
        known = merge_datasets(prefixes, output, force=args.force, workers=workers, advance=advance, total=total)
    print(describe_copy(output, known, f"of {len(prefixes)} datasets", time.monotonic() - begun))
    return 0
