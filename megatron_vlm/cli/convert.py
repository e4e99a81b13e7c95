"""Weights of other projects in, and out to a folder that `transformers` opens.

  megatron-vlm convert import --from llama/ --from siglip/ --to runs/start --preset vlm_1b       a decoder and an encoder
  megatron-vlm convert import --from llava-1.5-7b-hf/ --to runs/start --dry-run                 show the mapping first
  megatron-vlm train --config runs/start/checkpoints/step-00000000/config.yaml --checkpoint.start_from runs/start ...
  megatron-vlm convert export runs/first --to exported/                                         the newest checkpoint
  megatron-vlm convert export runs/first/checkpoints/step-00001200 --to exported/ --part language --family qwen3
  megatron-vlm convert export runs/lora --to adapter/ --part adapter                            low-rank updates, for peft

`import` derives the model's configuration from the folder's config.json, lays it on --preset or --config, and writes a
checkpoint that any layout loads, with its config.yaml beside it. What the folders do not hold begins as in a new run.
--section.field VALUE changes the configuration; --model.vision.image_size interpolates the positions. `export` writes
safetensors in shards, config.json, the tokenizer, processor, chat template and a model card. Neither builds the model:
memory stays near one shard. docs/interop.md has the families, and what of them is refused.

exit codes: 0 done; 2 refused (a tensor that is not mapped or has another shape, a model that cannot be said)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_vlm.cli.train import add_config_arguments

if TYPE_CHECKING:
    from megatron_vlm.interop.exporting import ExportPlan
    from megatron_vlm.interop.importing import ImportPlan

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    ways = parser.add_subparsers(dest="way", metavar="import|export", required=True)
    into = ways.add_parser("import", help="weights of another project into a checkpoint", allow_abbrev=False)
    into.add_argument(
        "--from",
        dest="folders",
        action="append",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="config.json and weights; again for another part of the model, such as an encoder",
    )
    into.add_argument("--to", required=True, type=Path, metavar="RUN", help="folder of a run: a checkpoint of step 0 in it")
    add_config_arguments(into)
    out = ways.add_parser("export", help="a checkpoint into a folder for transformers", allow_abbrev=False)
    out.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's folder or a step's")
    out.add_argument("--to", required=True, type=Path, metavar="FOLDER", help="a new folder")
    out.add_argument(
        "--part",
        choices=("all", "language", "vision", "adapter"),
        default="all",
        help="of the model that is written (default: all); adapter: low-rank updates of the language model, for peft",
    )
    out.add_argument("--without-updates", action="store_true", help="low-rank updates are not added to their matrices")
    out.add_argument("--family", help="model_type of the language model written (default: the first that can say it)")
    out.add_argument("--vocab-rows", type=int, metavar="N", help="rows of the word embeddings (default: the tokenizer's)")
    out.add_argument("--shard-size", default="4GB", metavar="SIZE", help="of a file at most (default: 4GB)")
    out.add_argument("--chat-template", default="plain", metavar="NAME", help="as preprocess takes it (default: plain)")
    out.add_argument("--no-tokenizer", action="store_true", help="write no tokenizer and no processor; their ids stay")
    for way in (into, out):
        way.add_argument(
            "--dtype", choices=("keep", "float32", "bfloat16", "float16"), default="keep", help="of the tensors written"
        )
        way.add_argument("--dry-run", action="store_true", help="print the mapping and what is left over; write nothing")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.cli.quiet import quiet_host_warnings
    from megatron_vlm.errors import UserError

    quiet_host_warnings()
    if args.way == "export" and args.overrides:
        raise UserError(f"unrecognized arguments: {' '.join(args.overrides)}")
    return _import(args) if args.way == "import" else _export(args)


def _dtype(name: str) -> Any:
    import torch

    return None if name == "keep" else getattr(torch, name)


def _import(args: argparse.Namespace) -> int:
    from megatron_vlm.config.loading import load_config
    from megatron_vlm.interop.importing import plan_import, run_import, with_tokenizer_of
    from megatron_vlm.interop.sources import open_source

    sources = [open_source(folder) for folder in args.folders]
    base = with_tokenizer_of(sources, load_config(preset=args.preset, file=args.config))
    plan = plan_import(sources, base, args.overrides)
    if args.dry_run:
        return _show_import(plan)
    print(f"wrote {run_import(plan, args.to, _dtype(args.dtype))}")
    return 0


def _show_import(plan: ImportPlan) -> int:
    for step in plan.steps:
        note = f"  ({step.note})" if step.note else ""
        origin = f"  <-  {' + '.join(step.entry.theirs) or '(the family has none)'}" if step.entry else ""
        print(f"{step.name} {list(step.shape)}{origin}{note}")
    _show_rest([(f"{folder}: {name}", reason) for folder, name, reason in plan.left_over], plan.problems)
    return 2 if plan.problems else 0


def _export(args: argparse.Namespace) -> int:
    from megatron_vlm.interop.exporting import plan_export, run_export

    adapter = args.part == "adapter"
    plan = plan_export(
        args.checkpoint,
        "language" if adapter else args.part,
        args.family,
        args.vocab_rows,
        _dtype(args.dtype),
        not args.no_tokenizer,
        not args.without_updates,
    )
    if args.dry_run:
        return _show_adapter(plan) if adapter else _show_export(plan)
    if adapter:
        from megatron_vlm.interop.peft_adapter import write_adapter

        modules = write_adapter(plan, args.to)
        print(f"wrote {args.to}: rank {plan.config.model.lora.rank} beside {', '.join(modules)}")
        return 0
    files = run_export(plan, args.to, size_in_bytes(args.shard_size), args.chat_template)
    print(f"wrote {args.to}: {plan.architecture}, {len(files)} file(s) of weights, {plan.rows:,} words")
    for note in plan.notes:
        print(f"note: {note}")
    return 0


def _show_export(plan: ExportPlan) -> int:
    print(f"{plan.architecture}, {plan.rows:,} words")
    for entry in plan.mapping.entries:
        print(f"{entry.ours}  ->  {' + '.join(entry.theirs) or '(the family has none)'}")
    for name, (shape, value) in plan.mapping.filled.items():
        print(f"(all {value:g})  ->  {name} {list(shape)}")
    _show_rest(plan.left_over, plan.problems)
    return 2 if plan.problems else 0


def _show_adapter(plan: ExportPlan) -> int:
    from megatron_vlm.interop.peft_adapter import adapter_tensors

    for name, value in adapter_tensors(plan):
        print(f"{name} {list(value.shape)}")
    return 0


def _show_rest(left_over: list[tuple[str, str]], problems: list[str]) -> None:
    print(f"left over: {len(left_over)}")
    for name, reason in left_over:
        print(f"  {name}: {reason}")
    if problems:
        print("cannot be done:")
        for line in problems:
            print(f"  - {line}")


def size_in_bytes(text: str) -> int:
    """`500MB`, `4GB` or a number of bytes. Raises UserError."""
    from megatron_vlm.errors import UserError

    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = (text[:-2], units[text[-2:].upper()]) if text[-2:].upper() in units else (text, 1)
    if not number.isdecimal() or int(number) == 0:
        raise UserError(f"--shard-size {text}: expected a number of bytes, KB, MB or GB, such as 4GB")
    return int(number) * unit
