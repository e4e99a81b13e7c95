"""Questions a second: ours packed, against lm-evaluation-harness's own Hugging Face model on the same weights.

  python benchmarks/bench_evaluation.py [--questions 300] [--batch-size 16] [--json FILE]

A small model is trained for two steps on bundled text, and exported. The questions have four choices of 1 to 8 words after
5 to 60 words from that text; both give each choice's log-likelihood, and these are compared. Both are called by the
harness's interface, in one process, on one thread. Needs `pip install 'megatron_vlm[harness]'`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import measure, parser, report, table

from megatron_vlm.cli.main import main as command
from megatron_vlm.config.loading import load_config

SAMPLE = Path(__file__).resolve().parent.parent / "examples" / "sample_data"


def checkpoint(folder: Path) -> Path:
    """A checkpoint of the `tiny` preset after two steps, by this process alone."""
    from megatron_vlm.parallel.topology import shutdown
    from megatron_vlm.training.loop import Run

    made = ["--tokenizer", str(SAMPLE / "tokenizer"), "--output", str(folder / "text")]
    command(["preprocess", "text", "--input", str(SAMPLE / "prose" / "heldout.jsonl.zst"), *made])
    overrides = ["--data.tokenizer", str(SAMPLE / "tokenizer"), "--data.sources", f"{{text: '{folder / 'text'}'}}"]
    overrides += [
        "--curriculum.stages",
        "[{sources: {text: 1.0}, freeze: [vision, projector]}]",
        "--logging.tensorboard",
        "false",
    ]
    overrides += ["--schedule.train_steps", "2", "--schedule.warmup_steps", "0", "--logging.directory", str(folder / "run")]
    Run(load_config(preset="tiny", overrides=overrides)).train()
    shutdown()
    return folder / "run"


def questions(count: int, folder: Path) -> list[Any]:
    """Requests of the harness: four choices each."""
    from lm_eval.api.instance import Instance

    from megatron_vlm.data.indexed_reader import IndexedReader
    from megatron_vlm.data.tokenizer import Tokenizer

    reader, tokenizer = IndexedReader(folder / "text"), Tokenizer.load(SAMPLE / "tokenizer")
    ids = [i for sequence in range(3) for i in reader.tokens(sequence).tolist() if i > 2]
    words, rng = tokenizer.decode(ids[:60000]).split(), np.random.default_rng(0)
    requests = []
    for number in range(count):
        at = int(rng.integers(0, len(words) - 100))
        context = " ".join(words[at : at + int(rng.integers(5, 60))])
        for choice in range(4):
            begin = int(rng.integers(0, len(words) - 10))
            answer = " " + " ".join(words[begin : begin + int(rng.integers(1, 9))])
            requests.append(Instance("loglikelihood", {}, (context, answer), choice, ("bench", number, 1)))
    return requests


def main() -> None:
    arguments = parser(__doc__, runs=3)
    arguments.add_argument("--questions", type=int, default=300, help="of four choices (default: %(default)s)")
    arguments.add_argument("--batch-size", type=int, default=16, help="of the harness's model (default: %(default)s)")
    args = arguments.parse_args()
    from lm_eval.models.huggingface import HFLM

    from megatron_vlm.evaluation.harness.lm_eval_model import HarnessModel
    from megatron_vlm.evaluation.scorer import Scorer, layout_for
    from megatron_vlm.training.checkpoint import checkpoint_config, find_checkpoint

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = checkpoint(folder)
        command(["convert", "export", str(run), "--to", str(folder / "hf"), "--part", "language"])
        found = find_checkpoint(run)
        ours = HarnessModel(Scorer.open(found, layout_for(checkpoint_config(found), 1, {}, generates=True)))
        theirs = HFLM(
            pretrained=str(folder / "hf"),
            device="cpu",
            dtype="float32",
            batch_size=args.batch_size,
            add_bos_token=False,
            prefix_token_id=0,
        )
        requests = questions(args.questions, folder)
        a = np.array([value for value, _ in ours.loglikelihood(requests)])
        b = np.array([value for value, _ in theirs.loglikelihood(requests, disable_tqdm=True)])
        off = np.abs(a - b)
        assert off.max() < 1e-2, f"the two score {(off > 1e-2).sum()} of {len(off)} answers differently, by {off.max():.3g}"
        timings = measure(
            {
                "megatron-vlm": lambda: ours.loglikelihood(requests),
                f"harness, Hugging Face, batches of {args.batch_size}": lambda: theirs.loglikelihood(
                    requests, disable_tqdm=True
                ),
            },
            args.runs,
            time.process_time,
        )
        print(f"{args.questions} questions of 4 choices")
        print(table(timings, "megatron-vlm"))
        rates = {name: args.questions / timing.median for name, timing in timings.items()}
        for name, rate in rates.items():
            print(f"{name}: {rate:.1f} questions/s")
    report(args, {"timings": timings, "questions_per_second": rates})


if __name__ == "__main__":
    main()
