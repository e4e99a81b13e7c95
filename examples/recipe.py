"""What the pre-training scripts in this folder share: start torchrun, read overrides, run a preset, `--smoke`.

A script `pretrain_*.sh` is a bash file and a Python file at once. Under bash its head calls `launch` here, which starts
torchrun on it; under torchrun Python runs its rest, which calls `main` with a preset's name.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = Path(__file__).resolve().parent / "sample_data"

USAGE = """usage: torchrun [--nproc-per-node N ...] examples/{script} [--smoke] [--section.field VALUE ...]
       bash examples/{script} [--smoke] [--section.field VALUE ...]

Runs the preset {preset}: pictures enter at 80 % of the run (--curriculum.stages.0.until). It needs
  --data.tokenizer PATH           tokenizer.json, or a folder that holds one
  --data.sources.text PREFIX      text, .bin/.idx (megatron-vlm preprocess text, or Megatron's own tool)
  --data.sources.captions PREFIX  captioned pictures, multimodal .bin/.idx (megatron-vlm preprocess image-text)
and takes any other field of the configuration (megatron-vlm config --preset {preset} prints them), among them
  --parallel.tensor_model_parallel_size, --parallel.pipeline_model_parallel_size, --logging.directory, --resume auto
--smoke shrinks model and run, not the code path, and brings its own data: it passes on CPU ranks.
"""

#: what --smoke changes: sizes and lengths. Blocks, norms, curriculum, freezing and optimiser stay the preset's.
SMOKE = """
model:
  language: {num_layers: 4, hidden_size: 64, num_attention_heads: 4, ffn_hidden_size: 192}
  vision: {image_size: 64, patch_size: 16, num_layers: 2, hidden_size: 64, num_attention_heads: 4, ffn_hidden_size: 128}
  projector: {pixel_shuffle: 2}
data: {sequence_length: 128, validation_documents: 32}
schedule: {micro_batch_size: 2, global_batch_size: 8, train_tokens: null, train_steps: 20, warmup_steps: 4}
checkpoint: {save_interval: 0}
logging: {log_interval: 5, eval_interval: 10}
"""


def launch(arguments: list[str]) -> None:
    """Replace this process by torchrun on the script `arguments[0]`; the rest goes on to it."""
    script, rest = arguments[0], arguments[1:]
    environment = os.environ
    processes = environment.get("NPROC_PER_NODE")
    if not processes:
        import torch

        processes = str(torch.cuda.device_count() or (4 if "--smoke" in rest else 1))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes]
    nodes = int(environment.get("NNODES", "1"))
    if nodes > 1:
        missing = [name for name in ("NODE_RANK", "MASTER_ADDR") if name not in environment]
        if missing:
            sys.exit(f"{Path(script).name}: with NNODES={nodes}, set {' and '.join(missing)} too")
        command += ["--nnodes", str(nodes), "--node-rank", environment["NODE_RANK"]]
        command += ["--master-addr", environment["MASTER_ADDR"]]
        command += ["--master-port", environment.get("MASTER_PORT", "29500")]
    else:
        command += ["--standalone"]
    environment.setdefault("OMP_NUM_THREADS", "1")
    os.execv(sys.executable, [*command, script, *rest])


def _smoke_data(folder: Path) -> list[str]:
    """Overrides for the bundled data, preprocessed once by the first process of this machine."""
    from megatron_vlm.data.preprocess import preprocess_image_text, preprocess_text
    from megatron_vlm.data.tokenizer import Tokenizer

    path = SAMPLE / "tokenizer"
    tokenizer = Tokenizer.load(path)
    # what the data is made from: a folder of an older checkout is made anew
    stamp = tokenizer.fingerprint + (SAMPLE / "manifest.json").read_text(encoding="utf-8")
    done = folder / "done"

    def is_done() -> bool:
        return done.exists() and done.read_text(encoding="utf-8") == stamp

    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        if not is_done():
            folder.mkdir(parents=True, exist_ok=True)
            preprocess_text([str(SAMPLE / "prose" / "heldout.jsonl.zst")], folder / "text", tokenizer)
            preprocess_image_text([str(SAMPLE / "images" / "train-00000.tar")], folder / "captions", tokenizer)
            done.write_text(stamp, encoding="utf-8")
    else:
        for _ in range(1200):
            if is_done():
                break
            time.sleep(0.1)
    return [
        "--data.tokenizer",
        str(path),
        "--data.sources",
        f"{{text: '{folder / 'text'}', captions: '{folder / 'captions'}'}}",
        "--data.validation",
        f"{{captions: '{folder / 'captions'}'}}",
    ]


def _layout(world_size: int) -> list[str]:
    """With --smoke: TP 2 x PP 2 where four ranks were started, else what fits; the command line can say otherwise."""
    tensor = 2 if world_size % 2 == 0 else 1
    pipeline = 2 if world_size % 4 == 0 else 1
    return [
        "--parallel.tensor_model_parallel_size",
        str(tensor),
        "--parallel.pipeline_model_parallel_size",
        str(pipeline),
        "--parallel.sequence_parallel",
        str(tensor > 1).lower(),
    ]


def main(preset: str, arguments: list[str]) -> int:
    """One rank of the run. Exit codes as of `megatron-vlm train`; 3 where a GPU is missing."""
    script = Path(sys.argv[0]).name
    if "-h" in arguments or "--help" in arguments:
        print(USAGE.format(script=script, preset=preset))
        return 0
    from megatron_vlm.cli.main import main as command

    smoke = "--smoke" in arguments
    overrides = [a for a in arguments if a != "--smoke"]
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    writer = int(os.environ.get("RANK", "0")) == 0
    # all ranks of a smoke run have one parent, torchrun: each run gets a folder of its own
    extra = ["--logging.directory", f"runs/{preset}-smoke-{os.getppid()}" if smoke else f"runs/{preset}"]
    if smoke:
        import tempfile

        config = Path(tempfile.gettempdir()) / f"megatron_vlm_smoke_{os.getuid()}"
        extra += _smoke_data(config) + _layout(world_size)
        settings = config / f"{preset}-{os.environ.get('LOCAL_RANK', '0')}.yaml"
        settings.write_text(SMOKE, encoding="utf-8")
        return command(["train", "--preset", preset, "--config", str(settings), *extra, *overrides])
    import torch

    if not torch.cuda.is_available():
        if writer:
            print(
                f"{script}: no GPU here, and {preset} needs some. `bash examples/{script} --smoke` runs a small model over "
                "the same code path on CPU ranks; `make demo` trains one on real pictures and prose.",
                file=sys.stderr,
            )
        return 3
    return command(["train", "--preset", preset, *extra, *overrides])


if __name__ == "__main__":
    if sys.argv[1:2] != ["launch"]:
        sys.exit("recipe.py is called by the scripts beside it: bash examples/pretrain_vlm_1b.sh --help")
    if any(a in ("-h", "--help") for a in sys.argv[3:]):
        name = Path(sys.argv[2]).name
        print(USAGE.format(script=name, preset=name.removeprefix("pretrain_").removesuffix(".sh")))
        sys.exit(0)
    launch(sys.argv[2:])
