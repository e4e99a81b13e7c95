"""Write the language model of a checkpoint as a folder that transformers opens.

  megatron-vlm export runs/first --to exported
  megatron-vlm export runs/first/checkpoints/step-00000800 --to exported --dtype bf16
  megatron-vlm export runs/first --dry-run

CHECKPOINT is a run's folder (its newest checkpoint is taken) or a step's, whatever layout wrote it. The class is
Qwen3ForCausalLM where queries and keys are normalised per head, else LlamaForCausalLM; blocks that neither has are refused.
Weights are safetensors, in files of --shard-size at most; tensors are read and written one by one. Padding of the
vocabulary is cut off, low-rank updates are added to their matrices. Encoder and projector are not written.
--dry-run prints every tensor, what it becomes, and what is left over.

exit codes: 0 done; 2 refused (checkpoint, blocks, a folder that is there already)
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's folder or a step's")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="a folder that is not there yet")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="of the weights (default: as they were saved)")
    parser.add_argument("--shard-size", default="2GB", metavar="SIZE", help="of a file at most (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="write nothing; print what would become of each tensor")


def run(args: argparse.Namespace) -> int:
    import warnings

    from megatron_vlm.cli.preprocess import parse_size
    from megatron_vlm.errors import UserError

    if args.to is None and not args.dry_run:
        raise UserError("give --to FOLDER, or --dry-run")
    shard_bytes = parse_size(args.shard_size)
    from megatron_vlm.cli.quiet import quiet_host_warnings

    quiet_host_warnings()
    from megatron_vlm.interop.export_language import export_language
    from megatron_vlm.interop.language_rules import as_dtype

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.distributed.*")  # one process is what is meant
        target = None if args.dry_run else args.to
        done = export_language(args.checkpoint, target, as_dtype(args.dtype) if args.dtype else None, shard_bytes)
    if args.dry_run:
        for ours, parts in done.mapping.items():
            print(f"{ours}  ->  {', '.join(f'{name} {list(shape)}' for name, shape in parts)}")
        for name in done.left_over:
            print(f"{name}  (left over)")
    where, count = f"wrote {args.to}: " if target else "", sum(map(len, done.mapping.values()))
    print(f"{where}{done.parameters:,} parameters in {count} tensors; {len(done.left_over)} left over")
    return 0
