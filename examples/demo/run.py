"""The demo: from raw pictures and prose to an evaluated vision-language model, by the commands that a user would type.

  make demo            or: python examples/demo/run.py [--steps 380] [--folder runs/demo]

1. `megatron-vlm preprocess` turns the bundled tars and prose into Megatron's .bin/.idx.
2. `torchrun ... train` pre-trains the `tiny` preset on two ranks, pipeline-parallel; pictures enter at 60 % of the run.
   Half-way the run gets SIGTERM, as a preempted job would, saves, and is started again with `--resume auto`.
3. `megatron-vlm evaluate` measures held-out losses, the blind control and the naming of pictures, before and after.
4. The smoke run of the 1B recipe passes through tensor x pipeline = 2 x 2 on four ranks.
Every command is printed before it runs. With CUDA the same commands use it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(Path(__file__).resolve().parent))
from picture import draw_losses  # noqa: E402

SAMPLE = Path("examples/sample_data")
EXIT_SAVED = 75
COMMAND = [sys.executable, "-m", "megatron_vlm.cli.main"]


def show(command: list[str]) -> list[str]:
    """Print a command as one would type it, and give it back."""
    text = shlex.join(command)
    text = text.replace(shlex.join(COMMAND), "megatron-vlm").replace(
        f"{sys.executable} -m torch.distributed.run", "torchrun"
    )
    print(f"\n$ {text}", flush=True)
    return command


def call(command: list[str]) -> None:
    code = subprocess.call(show(command), cwd=ROOT)
    if code:
        sys.exit(f"demo: the command above failed with exit code {code}")


def prepare(folder: Path) -> dict[str, str]:
    """Datasets and their prefixes, by name."""
    tokenizer = ["--tokenizer", str(SAMPLE / "tokenizer")]
    phrasings = ["--caption-key", "captions", "--caption-choice", "all"]
    jobs = {
        "text": ["text", "--input", f"{SAMPLE}/prose/train-*.jsonl.zst"],
        "captions": ["image-text", "--input", f"{SAMPLE}/images/train-*.tar", *phrasings],
        "unread": ["text", "--input", f"{SAMPLE}/prose/heldout.jsonl.zst"],
        "new_style": ["image-text", "--input", f"{SAMPLE}/images/heldout-style-*.tar"],
        "new_concepts": ["image-text", "--input", f"{SAMPLE}/images/heldout-concepts-*.tar"],
    }
    prefixes = {name: str(folder / "data" / name) for name in jobs}
    for name, job in jobs.items():
        call([*COMMAND, "preprocess", *job, "--output", prefixes[name], *tokenizer])
    # a third of the unread prose tells as much, and every evaluation reads it
    whole, prefixes["unread"] = prefixes["unread"], str(folder / "data" / "unread_sample")
    call([*COMMAND, "sample", whole, "--documents", "4", "--output", prefixes["unread"]])
    return prefixes


def train_command(folder: Path, prefixes: dict[str, str], steps: int, ranks: int) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "megatron_vlm.cli.main", "train", "--preset", "tiny", "--resume", "auto"]
    fields = {
        "data.tokenizer": str(SAMPLE / "tokenizer"),
        "data.sources": f"{{text: {prefixes['text']}, captions: {prefixes['captions']}}}",
        "data.validation": f"{{unread: {prefixes['unread']}, new_style: {prefixes['new_style']}, "
        f"new_concepts: {prefixes['new_concepts']}}}",
        "data.validation_documents": "210",
        "parallel.pipeline_model_parallel_size": str(ranks),
        **({"parallel.num_layers_in_last_pipeline_stage": "1"} if ranks > 1 else {}),
        "schedule.train_steps": str(steps),
        "logging.directory": str(folder / "run"),
        "logging.log_interval": "20",
        "logging.eval_interval": str(steps),  # at the start, at the border and at the end
    }
    for name, value in fields.items():
        command += [f"--{name}", value]
    return command


def train_interrupted(command: list[str], folder: Path, half: int) -> None:
    """Run until step `half`, end it by SIGTERM as a scheduler would, and run the same command again to the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    metrics = folder / "run" / "metrics.jsonl"
    process = subprocess.Popen(show(command), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    interrupted = False
    while process.poll() is None:
        time.sleep(0.5)
        if not interrupted and _last_step(ROOT / metrics) >= half:
            print(f"\n(demo: sending SIGTERM at step {half}, as a preempting scheduler does)", flush=True)
            process.send_signal(signal.SIGTERM)
            interrupted = True
    errors = process.stderr.read() if process.stderr else ""
    saved = list((ROOT / folder / "run" / "checkpoints").glob("step-*"))
    if process.returncode == 0 and not interrupted:
        sys.exit(f"demo: the run ended before step {half}")
    if not saved:
        sys.exit(f"demo: the run ended with {process.returncode} and no checkpoint:\n{errors}")
    print("(demo: the same command again goes on from the checkpoint)", flush=True)
    code = subprocess.call(show(command), cwd=ROOT, env=environment)
    if code:
        sys.exit(f"demo: the resumed run failed with exit code {code}")


def _last_step(metrics: Path) -> int:
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return -1
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError):
            continue
    return -1


def evaluate(checkpoint: Path, output: Path) -> dict:
    command = [*COMMAND, "evaluate", str(checkpoint), "--output", str(output)]
    command += ["--naming", f"new_style={SAMPLE}/images/heldout-style-*.tar"]
    call(command)
    return json.loads((ROOT / output).read_text(encoding="utf-8"))


def summary(before: dict, after: dict, records: list[dict]) -> tuple[str, list[str]]:
    """The closing table, and what in it is not as it should be."""
    train = [r for r in records if r["kind"] == "train"]
    last = train[-1]
    planned, achieved = last["planned_visual_share"], last["achieved_visual_share"]
    rows = [("", "before pictures", "at the end")]

    def loss(result: dict, name: str) -> str:
        return f"{result['held_out'][name]['loss']:.3f}"

    for name, label in (
        ("unread", "unread prose, loss"),
        ("new_style", "captions, new style, loss"),
        ("new_concepts", "captions, new concepts, loss"),
    ):
        rows.append((label, loss(before, name), loss(after, name)))
    problems = []
    for name in ("new_style", "new_concepts"):
        gaps = [(r["held_out"][name]["blind_gap"], r["held_out"][name]["gap_error"]) for r in (before, after)]
        rows.append((f"blind gap, {name.replace('_', ' ')}", *(f"{gap:+.3f} ± {error:.3f}" for gap, error in gaps)))
        if name == "new_style" and gaps[1][0] <= 0:
            problems.append("the blind gap is not above zero: the model does not look at the pictures")
    rows.append(("named right of 4, new style", *(f"{r['naming']['new_style']['accuracy']:.1%}" for r in (before, after))))
    rows.append(("image-token share, planned", "0", f"{planned:.4f}"))
    rows.append(("image-token share, achieved", "0", f"{achieved:.4f}"))
    rows.append(("padding", "", f"{last['padding_share']:.2%}"))
    if abs(achieved / planned - 1) > 0.01:
        problems.append(f"the achieved image-token share {achieved:.4f} is not within 1 % of the planned {planned:.4f}")
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}" for row in rows]
    return "\n".join(lines), problems


def _default_ranks() -> int:
    """Two CPU ranks, or as many GPUs, up to two."""
    import torch

    return min(2, torch.cuda.device_count() or 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=380, help="length of the run (default: 380, some minutes on 2 cores)")
    parser.add_argument("--ranks", type=int, help="pipeline stages (default: 2, or 1 where there is one GPU)")
    parser.add_argument("--folder", type=Path, default=Path("runs/demo"), help="where it is made, anew (default: runs/demo)")
    parser.add_argument("--without-smoke", action="store_true", help="leave out the smoke run of the 1B recipe")
    args = parser.parse_args()
    started = time.monotonic()
    folder: Path = args.folder
    if (ROOT / folder).exists():
        shutil.rmtree(ROOT / folder)
    ranks = args.ranks or _default_ranks()
    prefixes = prepare(folder)
    begun = time.monotonic()
    train_interrupted(train_command(folder, prefixes, args.steps, ranks), folder, args.steps // 2)
    trained = time.monotonic() - begun
    checkpoints = sorted((ROOT / folder / "run" / "checkpoints").glob("step-*"))
    records = [json.loads(x) for x in (ROOT / folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    entry = next(r["step"] for r in records if r.get("stage") == "images")
    border = next(p for p in checkpoints if p.name == f"step-{entry:08d}")
    before = evaluate(Path(os.path.relpath(border, ROOT)), folder / "before.json")
    after = evaluate(Path(os.path.relpath(checkpoints[-1], ROOT)), folder / "after.json")
    if not args.without_smoke:
        environment = {**os.environ, "PYTHON": sys.executable}
        code = subprocess.call(show(["bash", "examples/pretrain_vlm_1b.sh", "--smoke"]), cwd=ROOT, env=environment)
        if code:
            sys.exit(f"demo: the smoke run failed with exit code {code}")
    table, problems = summary(before, after, records)
    picture = draw_losses(records, entry, folder=ROOT / folder)
    print(
        f"\n{args.steps} steps, pictures from step {entry}; training {trained:.0f} s of {time.monotonic() - started:.0f} s"
    )
    print(table)
    print(f"\nlosses: {os.path.relpath(picture, ROOT)}\nrun:    {folder / 'run'} (tensorboard --logdir {folder / 'run'})")
    for problem in problems:
        print(f"demo: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
