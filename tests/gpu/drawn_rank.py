"""One rank of a few steps on drawn data, started by torchrun; rank 0 writes what came of it. `launch` starts them all.

  torchrun --nproc-per-node 2 -m tests.gpu.drawn_rank OUT.json tiny 3 --parallel.tensor_model_parallel_size 2

In processes of their own, so that a test leaves no process group, FP8 scale or memory to the next. On a machine without a
GPU the same ranks run on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_vlm.config.data import TokenCounts

ROOT = Path(__file__).resolve().parents[2]


#: as many words as GPT-NeoX's tokenizer has, with which the presets' sizes are counted
TOKENS = TokenCounts(vocab_size=50277, eod_id=0, image_token_id=1, pad_id=2)


def launch(ranks: int, preset: str, steps: int, *overrides: str, on_cpu: bool = False, timeout: float = 900) -> dict:
    """`DrawnSteps` of rank 0 as a map. `on_cpu` hides every GPU from the ranks. Raises AssertionError with their output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    if on_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    else:  # tests on the CPU are better off without what megatron-core compiles, a GPU runs it in training
        environment.pop("TORCH_COMPILE_DISABLE", None)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with TemporaryDirectory() as folder:
        out = Path(folder) / "steps.json"
        command = [*start, "-m", "tests.gpu.drawn_rank", str(out), preset, str(steps), *overrides]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        found: dict = json.loads(out.read_text(encoding="utf-8"))
    return found


def layout(**fields: object) -> list[str]:
    """Fields of `parallel` as options."""
    return [word for name, value in fields.items() for word in (f"--parallel.{name}", str(value).lower())]


def main(out: str, preset: str, steps: str, *overrides: str) -> None:
    from megatron_vlm.training.device_check.drawn_steps import configuration, drawn_steps

    learning_rate = 2e-3 if preset == "tiny" else 1e-4
    found = drawn_steps(configuration(preset, int(steps), overrides), int(steps), learning_rate, TOKENS)
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(asdict(found)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
