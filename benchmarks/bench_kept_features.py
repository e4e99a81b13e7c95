"""A training step with a frozen encoder: pictures decoded and encoded, against their features read from a file.

  python benchmarks/bench_kept_features.py [--preset tiny] [--image-size N] [--layers N] [--width N] [--runs 9] [--json FILE]

CPU seconds of the process, so that a machine with other work changes them little; waits for a disk are not in them.
Captioned pictures alone, JPEGs of --source pixels a side; one rank, one thread, fp32, micro-batches made in the rank itself
(loader.workers 0), so that a step's time is all of it. Both runs begin with the same weights and see the same documents;
their losses are compared before any timing and agree to 1e-2, or the benchmark ends. --layers and --width are the encoder's.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

import contextlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import measure, parser, report, table
from PIL import Image

from megatron_vlm.cli.quiet import quiet_host_warnings
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig

TOKENIZER = Path(__file__).resolve().parents[1] / "examples" / "sample_data" / "tokenizer"


def write_pictures(prefix: Path, count: int, side: int) -> None:
    """Documents of a picture and 16 words."""
    from megatron_vlm.data.indexed_writer import IndexedWriter

    rng = np.random.default_rng(0)
    with IndexedWriter(prefix, np.int32, multimodal=True, facts=True) as writer:
        for _ in range(count):
            ramp = np.linspace(0, 200, side)[:, None, None] + rng.integers(0, 50, (side, side, 3))
            stream = io.BytesIO()
            Image.fromarray(ramp.astype(np.uint8)).save(stream, "JPEG", quality=85)
            writer.add_image(stream.getvalue(), (side, side))
            writer.add_text(rng.integers(100, 1000, 16).tolist())
            writer.end_document()


def configuration(args: object, folder: Path, **more: str) -> RunConfig:
    fields = {
        "data.tokenizer": str(TOKENIZER),
        "data.sources": f"{{captions: '{folder / 'captions'}'}}",
        "curriculum.stages": "[{name: frozen, sources: {captions: 1}, freeze: [vision]}]",
        "schedule.train_steps": "1000",
        "loader.workers": "0",
        "logging.tensorboard": "false",
        "faults.check_replicas_interval": "0",
    }
    chosen = {"image_size": "image_size", "layers": "num_layers", "width": "hidden_size"}
    for option, field in chosen.items():
        if (value := getattr(args, option)) is not None:
            fields[f"model.vision.{field}"] = str(value)
    fields |= more
    return load_config(preset=args.preset, overrides=[f"--{name}={value}" for name, value in fields.items()])


def main() -> None:
    arguments = parser(__doc__, runs=9)
    arguments.add_argument("--preset", default="tiny", help="of the model (default: %(default)s)")
    arguments.add_argument("--pictures", type=int, default=256, help="of the dataset (default: %(default)s)")
    arguments.add_argument("--source", type=int, default=256, help="side of the JPEGs (default: %(default)s)")
    arguments.add_argument("--image-size", type=int, help="side of what the encoder sees (default: the preset's)")
    arguments.add_argument("--layers", type=int, help="of the encoder (default: the preset's)")
    arguments.add_argument("--width", type=int, help="of the encoder (default: the preset's)")
    args = arguments.parse_args()
    quiet_host_warnings()

    from megatron_vlm.parallel.topology import shutdown
    from megatron_vlm.training.feature_encoding import EncodeRequest, FeatureEncoding
    from megatron_vlm.training.loop import Run
    from megatron_vlm.training.step import train_step

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "captions", args.pictures, args.source)
        encoding = configuration(args, folder, **{"logging.directory": str(folder / "run")})
        runs = {"decoded and encoded": Run(encoding)}
        with contextlib.redirect_stdout(io.StringIO()):
            runs["decoded and encoded"]._start()
            runs["decoded and encoded"].save()
        checkpoint = folder / "run" / "checkpoints" / "step-00000000"
        known = FeatureEncoding(EncodeRequest(checkpoint, encoding, folder / "captions", folder / "kept")).run()
        assert known is not None
        runs["features read"] = Run(configuration(args, folder, **{"data.features": f"{{captions: '{folder / 'kept'}'}}"}))
        runs["features read"]._start()

        def step(run: Run) -> float:
            data = run.next_step()
            assert data is not None
            run.step += 1
            return train_step(run.engine, data.batches, run.topology, 1e-3).loss

        for number in range(2):
            losses = [step(run) for run in runs.values()]
            if abs(losses[0] - losses[1]) > 1e-2:
                raise SystemExit(f"step {number}: losses are {losses}: the features are not those of the encoder")
        timings = measure({name: lambda run=run: step(run) for name, run in runs.items()}, args.runs, time.process_time)
        model = encoding.model
        shown = f"{model.vision.num_layers} layers of {model.vision.hidden_size}, {model.vision.image_size} px"
        each = known["bytes"] / known["encoded"]
        print(f"encoder: {shown}; {model.image_tokens} tokens and {each / 1e3:.1f} KB of features a picture")
        print(table(timings, "decoded and encoded"))
        report(args, {"timings": timings, "bytes_per_picture": each, "image_tokens": model.image_tokens})
        for run in runs.values():
            run.data.close()
        shutdown()


if __name__ == "__main__":
    main()
