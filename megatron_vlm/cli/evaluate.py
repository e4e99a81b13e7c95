"""Evaluate a checkpoint: held-out loss by modality, a blind control, four-way naming of pictures.

  megatron-vlm evaluate runs/first
  megatron-vlm evaluate runs/first/checkpoints/step-00000800 --naming style='data/heldout-style-*.tar' --output r.json
  torchrun --nproc-per-node 4 -m megatron_vlm.cli.main evaluate runs/first \\
      --parallel.tensor_model_parallel_size 2 --parallel.pipeline_model_parallel_size 2

CHECKPOINT is a run's folder (its newest checkpoint is taken) or a step's. Held-out sources are those of the run's
data.validation; --data.validation.NAME PREFIX adds one. Captions are scored again under each other's pictures: a loss that
does not rise (gap 0) means that the model does not look. Naming asks which of four names is likeliest under a picture,
from tars whose .json have a field `name`; chance is 25 %. The layout need not be the one of the training. Length, size of
pictures and tokens a picture are those of the checkpoint's last steps; --curriculum.stages.N.image_size SIZE is another.

exit codes: 0 done; 2 refused (checkpoint, data, layout)
"""

from __future__ import annotations

import argparse
from pathlib import Path

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="a run's folder or a step's")
    parser.add_argument(
        "--naming",
        action="append",
        default=[],
        metavar="NAME=GLOB",
        help="tars of pictures to be named, under a name for the table; may be given again",
    )
    parser.add_argument("--name-key", default="name", help="field of the .json that holds the name (default: name)")
    parser.add_argument(
        "--template", default="{name}", help="words around the name, as captions have them (default: '{name}')"
    )
    parser.add_argument("--limit", type=int, default=0, help="documents of each source and questions at most (0: all)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as json")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.cli.quiet import quiet_host_warnings

    quiet_host_warnings()
    from megatron_vlm.config.loading import apply_overrides
    from megatron_vlm.data.opening import open_sources
    from megatron_vlm.data.sources.opening import expand_inputs
    from megatron_vlm.errors import UserError
    from megatron_vlm.evaluation.held_out import measure_held_out
    from megatron_vlm.evaluation.naming import NamingTask, make_questions
    from megatron_vlm.evaluation.report import as_map, table, write_json
    from megatron_vlm.evaluation.scorer import Scorer, layout_for
    from megatron_vlm.parallel.topology import shutdown, world_size_from_environment
    from megatron_vlm.training.checkpoint import checkpoint_config, find_checkpoint

    wanted = {}
    for item in args.naming:
        name, equals, pattern = item.partition("=")
        if not equals:
            raise UserError(f"--naming {item}: expected NAME=GLOB")
        wanted[name] = expand_inputs([pattern])
    checkpoint = find_checkpoint(args.checkpoint)
    config, given = apply_overrides(checkpoint_config(checkpoint), args.overrides)
    config = layout_for(config, world_size_from_environment(), given.get("parallel", {}))
    scorer = Scorer(checkpoint, config)
    try:
        sources = open_sources(config.data.validation, scorer.tokenizer, scorer.shape.image_tokens)
        held_out = {name: measure_held_out(scorer, source, args.limit) for name, source in sources.items()}
        naming = {
            name: NamingTask(scorer, args.template).measure(make_questions(tars, args.name_key, limit=args.limit))
            for name, tars in wanted.items()
        }
        if scorer.topology.rank == 0:
            print(f"{checkpoint}, step {scorer.step}")
            print(table(held_out, naming))
            if args.output:
                write_json(args.output, as_map(scorer.step, held_out, naming))
                print(f"wrote {args.output}")
    finally:
        shutdown()
    return 0
