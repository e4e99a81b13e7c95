"""Find out whether datasets are what was written, and which documents are damaged where they are not.

  megatron-vlm validate data/images data/prose
  megatron-vlm validate data/images --quick        the index alone, whatever the size of the data
  megatron-vlm validate data/*.idx --json report.json

Compares the sha256 of every block of the files with those in PREFIX.json. Of a dataset that has none (Megatron's own tools
write none), or with --no-checksums, it looks at every record: padding, the framing of pictures, token ids. The index is
checked in any case. Ends with 0 where all are sound, 1 where one is damaged, 2 where a name or an option is wrong.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefixes", type=Path, nargs="+", metavar="PREFIX", help="datasets, each a path without suffix")
    parser.add_argument("--quick", action="store_true", help="do not read the .bin: index, sizes and counts only")
    parser.add_argument("--no-checksums", action="store_true", help="look at every record instead of at checksums")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that hash (default: the cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found as json, too")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.cli.dataset_argument import byte_bar, checked_workers, dataset_prefix
    from megatron_vlm.cli.output_file import refuse_unwritable
    from megatron_vlm.data import atomic_file
    from megatron_vlm.data.validation import bytes_to_read, validate_dataset

    workers = checked_workers(args.workers)
    refuse_unwritable("--json", args.json)
    reports = []
    for prefix in map(dataset_prefix, args.prefixes):
        with byte_bar(bytes_to_read(prefix, args.quick), prefix.name) as advance:
            options = {"quick": args.quick, "checksums": not args.no_checksums}
            reports.append(validate_dataset(prefix, **options, workers=workers, advance=advance))
        print(reports[-1].describe(), flush=True)
    sound = all(report.sound for report in reports)
    if args.json is not None:
        found = {"sound": sound, "datasets": [report.as_json() for report in reports]}
        atomic_file.write_text(args.json, json.dumps(found, indent=2) + "\n")
    return 0 if sound else 1
