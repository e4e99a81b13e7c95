"""Plan a run on GPUs: does it fit, how long does it take, what does it cost; and which layout is the fastest.

  megatron-vlm plan vlm_1b --gpus 64 --gpu h100                     the configuration's own layout
  megatron-vlm plan vlm_7b --gpus 64 --parallel.recompute full      another one; what does not fit says what to change
  megatron-vlm plan search vlm_7b --gpus 256 --gpu h100 --price 2.5 the ten fastest layouts, with GPU-hours and cost
  megatron-vlm plan search vlm_7b --gpus 256 --out plan.png         and a picture of the fastest: pipeline, time, memory
  megatron-vlm plan --calibrate runs/a/metrics.jsonl --config runs/a/config.yaml --gpus 8 --efficiency own.json
                                                                    fit the model of speed to a run of your own
  megatron-vlm plan published                                       how far off it is on runs that others published

search tries every tensor, pipeline and virtual size, and for rows of 8192 positions or more every context-parallel size too.

CONFIG is a YAML file or the name of a preset; --section.field VALUE overrides it as in `megatron-vlm train`. Nothing is
loaded and no GPU is needed. Where a dataset is not there, documents are assumed and it says so; --assume tells better.

What is exact: parameters, FLOPs, the order of a pipeline's passes. What is counted tensor by tensor: memory. What is a model
with stated factors: seconds. docs/planner.md says how each was checked. Prices are yours, in any currency.

exit codes: 0 planned and it fits; 1 it does not fit; 2 refused
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_vlm.cli.plan_inputs import Inputs
    from megatron_vlm.planning.estimate import Estimate

TAKES_OVERRIDES = True
SUFFIXES = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from megatron_vlm.cli.train import add_config_arguments

    parser.usage = (
        "megatron-vlm plan [search] [CONFIG | --preset PRESET | --config FILE] [--gpus N] [--gpu NAME] [--price P]\n"
        "         [--json] [--out FILE] [--section.field VALUE ...]\n"
        "       megatron-vlm plan [CONFIG] --calibrate METRICS --gpus N --gpu NAME [--efficiency FILE]\n"
        "       megatron-vlm plan published"
    )
    parser.add_argument(
        "words", nargs="*", metavar="[search | published] [CONFIG]", help="a YAML file or the name of a preset"
    )
    add_config_arguments(parser)
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="GPUs of the run (default: %(default)s)")
    parser.add_argument("--gpu", default="h100", metavar="NAME", help="a100, h100, h200 or b200 (default: %(default)s)")
    parser.add_argument("--precision", choices=("bf16", "fp8", "fp32"), help="in place of the configuration's")
    parser.add_argument(
        "--vision",
        choices=("tensor", "data_first_stage", "data_all_stages"),
        help="where pictures are encoded, in place of the configuration's; search tries all three",
    )
    parser.add_argument("--price", type=float, metavar="P", help="of one GPU for an hour, for the cost")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="layouts that search shows (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the same as json")
    parser.add_argument("--out", type=Path, metavar="FILE", help="draw the plan, or the best one found: .png, .svg or .pdf")
    parser.add_argument(
        "--assume", action="append", default=[], metavar="SOURCE=TOKENS[+PICTURES]", help="documents of a missing dataset"
    )
    parser.add_argument("--vocab-size", type=int, metavar="N", help="where there is no tokenizer to ask")
    parser.add_argument("--calibrate", type=Path, metavar="METRICS", help="the metrics.jsonl of a run of this configuration")
    parser.add_argument(
        "--efficiency", type=Path, metavar="FILE", help="factors of your own: read, or written by --calibrate"
    )


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.errors import ConfigError

    words, overrides = list(args.words), list(args.overrides)
    while overrides and not overrides[0].startswith("--"):
        words.append(overrides.pop(0))  # CONFIG after an option, as in `plan --json vlm_1b`
    action = words.pop(0) if words and words[0] in ("search", "published") else "show"
    if args.out is not None and args.out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {args.out} ends with none of {', '.join(SUFFIXES)}; name a file that does")
    if args.gpus < 1:
        raise ConfigError(f"--gpus {args.gpus} must be at least 1")
    if action == "published":
        return _published(args)
    if args.calibrate is not None:
        return _calibrate(args, words, overrides)
    from megatron_vlm.cli.plan_inputs import read_inputs

    inputs = read_inputs(args, words, overrides)
    return _search(args, inputs) if action == "search" else _show(args, inputs)


def _published(args: argparse.Namespace) -> int:
    from megatron_vlm.cli.plan_tables import describe_fastest, describe_published
    from megatron_vlm.planning.published import compare

    compared = compare()
    if args.json:
        rows = [
            {"source": c.run.source, "model": c.run.name, "gpu": c.run.gpu, "gpus": c.run.layout.gpus}
            | {"published_seconds": c.run.seconds, "predicted_seconds": c.predicted, "error": c.error}
            for c in compared
        ]
        print(json.dumps(rows, indent=2))
    else:
        from megatron_vlm.planning.published_fastest import compare_fastest

        print("\n".join([*describe_published(compared), "", *describe_fastest(compare_fastest())]))
    return 0


def _show(args: argparse.Namespace, inputs: Inputs) -> int:
    from megatron_vlm.cli.plan_tables import as_json, describe_estimate, describe_remedies
    from megatron_vlm.config.checks import problems
    from megatron_vlm.errors import ConfigError
    from megatron_vlm.planning.estimate import estimate
    from megatron_vlm.planning.remedies import remedies

    # what it lacks of data does not matter here, what its layout lacks does
    wrong = [line for line in problems(inputs.config, args.gpus) if not line.startswith("data.")]
    if wrong:
        raise ConfigError(f"{inputs.name} does not run on {args.gpus} GPUs:\n" + "\n".join(f"  - {line}" for line in wrong))
    plan = estimate(
        inputs.config,
        inputs.hardware,
        args.gpus,
        inputs.stretches,
        inputs.vocab_size,
        efficiency=inputs.efficiency,
        precision=args.precision,
        vision=args.vision,
    )
    found = [] if plan.fits else remedies(plan, inputs.stretches, inputs.vocab_size, inputs.efficiency)
    if args.json:
        nearest = [as_json(one.estimate, args.price, inputs.config) for one in found]
        print(json.dumps({**as_json(plan, args.price, inputs.config), "remedies": nearest, "notes": inputs.notes}, indent=2))
    else:
        lines = list(describe_estimate(plan, inputs.vocab_size, args.price))
        lines += [] if plan.fits else ["", *describe_remedies(found)]
        print("\n".join([*lines, *_noted(inputs)]))
    _draw(args, inputs, plan)
    return 0 if plan.fits else 1


def _search(args: argparse.Namespace, inputs: Inputs) -> int:
    from megatron_vlm.cli.plan_tables import as_json, describe_memory, describe_run, describe_search, overrides_of
    from megatron_vlm.errors import ConfigError
    from megatron_vlm.planning.layout import VISION_PLACEMENTS
    from megatron_vlm.planning.layout_search import search

    result = search(
        inputs.config,
        inputs.hardware,
        args.gpus,
        inputs.stretches,
        inputs.vocab_size,
        efficiency=inputs.efficiency,
        precision=args.precision,
        visions=(args.vision,) if args.vision else VISION_PLACEMENTS,
        keep=max(1, args.top),
    )
    if result.refused:
        reasons = "\n".join(f"  - {line}" for line in result.refused)
        raise ConfigError(f"{inputs.name} runs in no layout on {args.gpus} GPUs; the one that lacks least:\n{reasons}")
    if args.json:
        values = {"best": [as_json(plan, args.price, inputs.config) for plan in result.best], "tried": result.tried}
        print(json.dumps({**values, "too_large": result.too_large, "notes": inputs.notes}, indent=2))
    elif result.best:
        best = result.best[0]
        lines = [
            *describe_search(result, args.price),
            "",
            "The fastest:",
            "  " + " ".join(overrides_of(best, inputs.config)),
        ]
        print("\n".join([*lines, *describe_memory(best), *describe_run(best, args.price), *_noted(inputs)]))
    elif result.nearest is None:
        print(
            f"No layout deals this run out to {args.gpus} GPUs: micro-batches x data-parallel ranks must divide the global "
            f"batches ({', '.join(sorted({str(s.shape.global_batch_size) for s in inputs.stretches}))}); change "
            f"--schedule.global_batch_size or --gpus"
        )
    else:
        print("\n".join(["Nothing fits. The one that needs least:", "  " + str(result.nearest.layout)]))
        print("\n".join([*describe_memory(result.nearest), "Take more GPUs, or GPUs with more memory.", *_noted(inputs)]))
    if result.best:
        _draw(args, inputs, result.best[0])
    return 0 if result.best else 1


def _calibrate(args: argparse.Namespace, words: list[str], overrides: list[str]) -> int:
    from megatron_vlm.cli.plan_inputs import read_inputs
    from megatron_vlm.cli.plan_tables import describe_calibration
    from megatron_vlm.planning.calibration import calibrate, read_measured
    from megatron_vlm.planning.efficiency import write_efficiency

    target, args.efficiency = args.efficiency, None
    beside = args.calibrate.parent / "config.yaml"
    if not words and not (args.config or args.preset) and beside.is_file():
        args.config = beside
    inputs = read_inputs(args, words, overrides)
    lengths = [stretch.document_length for stretch in inputs.stretches if stretch.document_length is not None]
    mean = sum(lengths) / len(lengths) if lengths else None
    measured = read_measured(args.calibrate, inputs.config, mean)
    found = calibrate(measured, inputs.config, inputs.hardware, args.gpus, inputs.vocab_size, precision=args.precision)
    print("\n".join(describe_calibration(found)))
    if target is not None:
        write_efficiency(found.efficiency, target, f"{args.calibrate} on {args.gpus} x {inputs.hardware.name}")
        print(f"Wrote {target}; plan --efficiency {target} takes it.")
    return 0


def _noted(inputs: Inputs) -> list[str]:
    return ["", *(f"note: {line}" for line in inputs.notes)] if inputs.notes else []


def _draw(args: argparse.Namespace, inputs: Inputs, plan: Estimate) -> None:
    if args.out is None:
        return
    from megatron_vlm.planning.pipeline_picture import write_picture

    write_picture(args.out, inputs.name, plan)
    if not args.json:
        print(f"\nWrote {args.out}")
