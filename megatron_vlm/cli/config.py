"""Print a resolved configuration as YAML, or check it for a number of ranks.

  megatron-vlm config --preset vlm_1b --schedule.lr 3e-3        every field, with the values that a run would have
  megatron-vlm config --config run.yaml --check 8               refuse what 8 ranks could not run, and say why

exit codes: 0 printed or fit; 2 refused
"""

from __future__ import annotations

import argparse

from megatron_vlm.cli.train import add_config_arguments

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--check", type=int, metavar="RANKS", help="check against this number of ranks")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.config.checks import check
    from megatron_vlm.config.loading import load_config, to_yaml
    from megatron_vlm.training.length import with_length

    config = load_config(preset=args.preset, file=args.config, overrides=args.overrides)
    if args.check is not None:
        check(with_length(config), args.check)
        print(f"fits {args.check} rank(s)")
    else:
        print(to_yaml(config), end="")
    return 0
