"""Planning packs: packs a second and padding, on synthetic documents of the lengths that real ones have.

  python benchmarks/bench_planner.py [--documents 100000] [--packs 5000] [--window 256] [--json FILE]

Two sources in equal numbers: prose (lognormal, median 600 tokens) and captioned pictures (144 positions and 10 to 60 words).
Every rank plans all packs of the run, so this rate bounds a step: steps/s = packs/s / global_batch_size. Padding is counted
with and without cutting texts at holes. The datasets are written to a temporary folder and read by the trainer's reader.

Then one window of all documents at once, and the start of a run over `--large` documents: from opening the index to the
first micro-batch, assembled, beside a read of the bytes of its index.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_reader import write_large_index
from measuring import parser, report

from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.data import DataConfig, TokenCounts
from megatron_vlm.config.model import ModelConfig, ProjectorConfig, VisionConfig
from megatron_vlm.config.optimization import ScheduleConfig
from megatron_vlm.config.run import RunConfig
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.micro_batch_arrays import ArrayMaker
from megatron_vlm.data.packing import PackPlanner

TOKENS = TokenCounts(vocab_size=50000, eod_id=0, image_token_id=1, pad_id=2)
MODEL = ModelConfig(vision=VisionConfig(image_size=192, patch_size=16), projector=ProjectorConfig(pixel_shuffle=1))
IMAGE_TOKENS = MODEL.image_tokens


def write_sources(folder: Path, documents: int) -> dict[str, DocumentSource]:
    rng = np.random.default_rng(0)
    prose = np.clip(rng.lognormal(np.log(600), 1.0, documents // 2).astype(int), 16, 20000)
    with IndexedWriter(folder / "text", np.uint16, multimodal=False) as writer:
        for length in prose:
            writer.add_text(np.full(length, 7, np.uint16))
            writer.end_document()
        writer.finalize({})
    with IndexedWriter(folder / "captions", np.int32, multimodal=True) as writer:
        for length in rng.integers(10, 60, documents - documents // 2):
            writer.add_image(b"")
            writer.add_text(np.full(length, 7, np.int32))
            writer.end_document()
        writer.finalize({})
    return {n: DocumentSource(n, IndexedReader(folder / n), TOKENS, IMAGE_TOKENS) for n in ("text", "captions")}


def main() -> None:
    arguments = parser(__doc__, runs=3)
    arguments.add_argument("--documents", type=int, default=100_000, help="in both sources (default: %(default)s)")
    arguments.add_argument("--packs", type=int, default=5000, help="planned in a run (default: %(default)s)")
    arguments.add_argument("--sequence-length", type=int, default=2048, help="positions of a pack (default: %(default)s)")
    arguments.add_argument("--large", type=int, default=10_000_000, help="documents of the start (default: %(default)s)")
    arguments.add_argument("--batch", type=int, default=256, help="packs of a step (default: %(default)s)")
    arguments.add_argument("--window", type=int, default=256, help="data.window_packs (default: %(default)s)")
    args = arguments.parse_args()
    stages = (StageConfig(sources={"text": 0.75, "captions": 0.25}, measure="visual_tokens"),)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = write_sources(Path(folder), args.documents)
        print(f"{args.documents} documents, {args.packs} packs of {args.sequence_length}, 25 % visual tokens")
        print(f"{'':<14}{'packs/s':>10}{'min':>10}{'max':>10}{'padding':>10}{'visual':>9}")
        for name, fill in (("holes filled", True), ("holes left", False)):
            rates = []
            for _ in range(args.runs):
                data = DataConfig(sequence_length=args.sequence_length, fill_holes=fill, window_packs=args.window)
                config = RunConfig(
                    model=MODEL,
                    data=data,
                    curriculum=CurriculumConfig(stages),
                    schedule=ScheduleConfig(global_batch_size=args.batch, train_steps=-(-args.packs // args.batch)),
                )
                planner = PackPlanner(sources, config)
                begun = time.perf_counter()
                for plan in planner.plans():
                    count = plan.report
                rates.append(config.total_packs / (time.perf_counter() - begun))
            padding = count.padded / (count.padded + sum(count.source_tokens.values()))
            visual = count.achieved_visual_share
            rate = sorted(rates)[len(rates) // 2]
            print(f"{name:<14}{rate:>10.0f}{min(rates):>10.0f}{max(rates):>10.0f}{padding:>10.3%}{visual:>9.2%}")
            results[name] = {"packs_per_second": rates, "padding_share": padding, "visual_share": visual}
        results["window"] = window(sources, args)
    with tempfile.TemporaryDirectory() as folder:
        results["start"] = start(Path(folder), args)
    report(args, results)


def window(sources: dict[str, DocumentSource], args: argparse.Namespace) -> dict[str, object]:
    """CPU seconds of planning one window that takes about as many documents as there are, again and again."""
    mean = 0.5 * sum(source.mean_positions() for source in sources.values())
    packs = int(args.documents * mean / args.sequence_length)
    _, documents = _windows(sources, args.sequence_length, packs, 1)  # of shares by tokens, more are short ones
    times, documents = _windows(sources, args.sequence_length, packs * args.documents // documents, args.runs + 1)
    middle = sorted(times[1:])[args.runs // 2]  # the first one fills caches
    print(f"a window of {documents} documents: {1000 * middle:.0f} ms of CPU ({1e9 * middle / documents:.0f} ns a document)")
    return {"documents": documents, "seconds": times[1:]}


def _windows(sources: dict[str, DocumentSource], length: int, packs: int, count: int) -> tuple[list[float], int]:
    """CPU seconds of each of `count` windows of `packs` packs, and the documents of the last."""
    config = RunConfig(
        model=MODEL,
        data=DataConfig(sequence_length=length, window_packs=packs),
        curriculum=CurriculumConfig((StageConfig(sources={"text": 0.75, "captions": 0.25}, measure="visual_tokens"),)),
        schedule=ScheduleConfig(global_batch_size=packs, train_steps=count + 1),
    )
    planner = PackPlanner(sources, config)
    times, documents = [], 0
    for _ in range(count):
        begun = time.process_time()
        assert planner._begin_window()
        times.append(time.process_time() - begun)
        assert planner._window is not None
        documents = sum(draw.count for draw in planner._window.draws.values())
        planner._taken = planner._window.packs
        planner._finish_window()
    return times, documents


def start(folder: Path, args: argparse.Namespace) -> dict[str, object]:
    """Seconds from opening an index of many documents to the first micro-batch."""
    write_large_index(folder / "large", args.large)
    config = RunConfig(
        model=MODEL,
        data=DataConfig(sequence_length=args.sequence_length),
        curriculum=CurriculumConfig((StageConfig(sources={"large": 1.0}),)),
        schedule=ScheduleConfig(global_batch_size=8, train_steps=1000),
    )
    times, reads = [], []
    for _ in range(args.runs):
        begun = time.perf_counter()
        source = DocumentSource("large", IndexedReader(folder / "large"), TOKENS, IMAGE_TOKENS)
        plan = PackPlanner({"large": source}, config).plan_step()
        assert plan is not None
        made = ArrayMaker([source], TOKENS, None)(plan.packs[:1], plan.shape)
        times.append(time.perf_counter() - begun)
        assert made.batch.tokens.shape == (args.sequence_length,)
        begun = time.perf_counter()
        size = len((folder / "large.idx").read_bytes())
        reads.append(time.perf_counter() - begun)
    middle, read = (sorted(values)[args.runs // 2] for values in (times, reads))
    print(f"{args.large} documents, opened to the first micro-batch: {middle:.2f} s")
    print(f"(reading the {size / 1e6:.0f} MB of the index: {read:.2f} s)")
    return {"documents": args.large, "seconds": times, "read_seconds": reads}


if __name__ == "__main__":
    main()
