"""Keep what a frozen encoder makes of a dataset's pictures, so that stages which do not train it need not encode them again.

  megatron-vlm encode data/captions --from runs/first
  megatron-vlm encode data/captions --from runs/start --output /fast/captions.features --image-size 384
  torchrun --nproc-per-node 8 -m megatron_vlm.cli.main encode data/captions --from runs/start
  megatron-vlm train --config run.yaml --data.features.captions data/captions.features

CHECKPOINT is a run's folder (its newest checkpoint is taken) or a step's. OUTPUT.bin and .idx are Megatron's indexed format
with the documents of the dataset: where that has a picture, its features before the projector, in bf16; pictures of the
same bytes are there once. OUTPUT.json says of which encoder and dataset they are, and training refuses others. Every rank of
torchrun has the whole encoder and takes a part of the pictures. A run that was killed is gone on with by the same command.
--section.field VALUE changes the checkpoint's configuration: data.pictures.resize, parallel.precision. See docs/pictures.md.

exit codes: 0 done; 2 refused (checkpoint, dataset, settings, room on the disk)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="dataset, a path without suffix")
    parser.add_argument(
        "--from", dest="checkpoint", type=Path, required=True, metavar="CHECKPOINT", help="whose encoder it is"
    )
    parser.add_argument("--output", type=Path, metavar="OUTPUT", help="a path without suffix (default: PREFIX.features)")
    parser.add_argument("--image-size", type=int, metavar="N", help="side in pixels (default: the encoder's own)")
    parser.add_argument(
        "--image-pool",
        type=int,
        default=1,
        metavar="N",
        help="that of the stage, which shapes pictures that keep their aspect (default: 1)",
    )
    parser.add_argument("--micro-batch", type=int, default=32, metavar="N", help="pictures at a time (default: %(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that decode (default: the cores)")


def run(args: argparse.Namespace) -> int:
    import os
    import sys
    import time
    from dataclasses import replace

    from megatron_vlm.cli.dataset_argument import checked_workers, dataset_prefix
    from megatron_vlm.cli.quiet import quiet_host_warnings
    from megatron_vlm.errors import ConfigError

    for name in ("image_size", "image_pool", "micro_batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; at least 1")
    workers = checked_workers(args.workers)
    quiet_host_warnings()
    from tqdm import tqdm

    from megatron_vlm.config.loading import apply_overrides
    from megatron_vlm.config.parallel import ParallelConfig
    from megatron_vlm.config.performance import PerformanceConfig
    from megatron_vlm.config.precision import PrecisionConfig
    from megatron_vlm.parallel.topology import shutdown, world_size_from_environment
    from megatron_vlm.training.checkpoint import checkpoint_config, find_checkpoint
    from megatron_vlm.training.feature_encoding import EncodeRequest, FeatureEncoding, cores_of_a_rank

    begun = time.monotonic()
    checkpoint, prefix = find_checkpoint(args.checkpoint), dataset_prefix(args.prefix)
    config, given = apply_overrides(checkpoint_config(checkpoint), args.overrides)
    parallel = ParallelConfig(precision=config.parallel.precision, **_of_a_rank(given.get("parallel", {})))
    config = replace(config, parallel=parallel, precision=PrecisionConfig(), performance=PerformanceConfig())
    output = dataset_prefix(args.output) if args.output else prefix.with_name(f"{prefix.name}.features")
    request = EncodeRequest(
        *(checkpoint, config, prefix, output, args.image_size, args.image_pool, args.micro_batch),
        workers or cores_of_a_rank(),
    )
    try:
        first, ranks = os.environ.get("RANK", "0") == "0", world_size_from_environment()
        # on a terminal a bar, in a log a line now and then
        bars: dict[str, Any] = {
            "unit": " pictures",
            "disable": not first,
            "mininterval": 0.1 if sys.stderr.isatty() else 30.0,
        }
        with tqdm(desc="reading", **bars) as bar:
            encoding = FeatureEncoding(request, bar.update)
        what = "encoding" if ranks == 1 else f"encoding, rank 0 of {ranks}"
        with tqdm(total=encoding.share, desc=what, **bars) as bar:
            known = encoding.run(bar.update)
        if first:
            print(_said(output, known, time.monotonic() - begun))
    finally:
        shutdown()
    return 0


def _of_a_rank(given: dict[str, Any]) -> dict[str, Any]:
    """Fields of `parallel` that there is a choice of: a rank has the whole encoder. Raises ConfigError for others."""
    from megatron_vlm.errors import ConfigError

    other = sorted(set(given) - {"precision", "device", "layer_spec", "timeout_s"})
    if other:
        raise ConfigError(f"--parallel.{other[0]}: every rank has the whole encoder and encodes its part; leave it out")
    return {name: value for name, value in given.items() if name != "precision"}


def _said(output: Path, known: dict[str, Any] | None, seconds: float) -> str:
    if known is None:
        return f"{output} is there already, of this encoder, dataset and size of pictures; nothing to do."
    lines = [
        f"Wrote {output}.bin and .idx: features of {known['pictures']:,} pictures, {known['encoded']:,} of them different, "
        f"{known['bytes'] / 1e6:,.1f} MB, in {seconds:,.1f} s."
    ]
    if known["broken"]:
        lines.append(f"{len(known['broken']):,} pictures do not decode; data.pictures.broken says what becomes of them.")
    return "\n".join(lines)
