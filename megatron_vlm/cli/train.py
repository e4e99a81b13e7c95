"""Pre-train a model; images enter where the curriculum says.

Alone it is one rank; under torchrun each process is a rank of the layout:

  megatron-vlm train --preset tiny --data.tokenizer tok/ --data.sources '{text: data/text, captions: data/captions}' \\
      --schedule.train_steps 200 --logging.directory runs/first
  torchrun --nproc-per-node 4 -m megatron_vlm.cli.main train --config run.yaml \\
      --parallel.tensor_model_parallel_size 2 --parallel.pipeline_model_parallel_size 2

Every field of the configuration can be given as --section.field VALUE (values are YAML); `megatron-vlm config` prints them
with their defaults. Stages are numbered: --curriculum.stages.0.until 0.6. The resolved configuration, metrics.jsonl,
tensorboard/ and checkpoints/ go to logging.directory. SIGTERM and SIGUSR1 save a checkpoint at the end of the step.

exit codes: 0 done; 2 refused (configuration, data); 75 stopped by a signal and saved, go on with --resume auto
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--resume",
        metavar="auto|none|FOLDER",
        help="auto: go on from the newest checkpoint of this run if there is one (same as --checkpoint.resume)",
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", help="start from a preset: tiny, vlm_79m, vlm_1b, vlm_7b")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file; its keys win over the preset's")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.config.checks import check
    from megatron_vlm.config.loading import load_config
    from megatron_vlm.training.length import with_length

    overrides = list(args.overrides)
    if args.resume:
        overrides += ["--checkpoint.resume", args.resume]
    config = with_length(load_config(preset=args.preset, file=args.config, overrides=overrides))
    check(config, int(os.environ.get("WORLD_SIZE", "1")))  # refused before the slow imports
    from megatron_vlm.cli.quiet import quiet_host_warnings

    quiet_host_warnings()
    from megatron_vlm.training.loop import train

    if not config.evaluation.tasks:
        return train(config).exit_code
    from megatron_vlm.evaluation.during_training import TaskMeasure

    return train(config, TaskMeasure(config)).exit_code
