"""Samples a second from the disk into a training process: this loader, and others' over the same pictures.

  python benchmarks/bench_loader.py [--pictures 2000] [--samples 4000] [--runs 3] [--peers PYTHON] [--json FILE]

Samples are JPEGs of 256 px, about 24 kB, with a caption of 30 words. Ours are delivered as packed micro-batches that can be
trained on; the others' as they come, decoded to 256 px (uint8) or as encoded bytes, uncollated where that is quicker.
  raw        the encoded bytes and the ids of the text: by ours in the process itself, copied into the micro-batch's memory
             in place of pixels
  decoded    pixels: by ours in the process itself and by two workers

Ways are run in turn, `--samples` of each a run, counted from the first batch on, so that starting costs nobody anything. All
files are in the page cache. `--peers` is the interpreter of an environment that has webdataset, mosaicml-streaming,
megatron-energon, simplejpeg and torch; what is not there is left out and named. Run it on two cores (`taskset -c 0,1`).
"""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import parser, report
from PIL import Image

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.loader import LoaderConfig
from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.loader.batch_loader import BatchLoader
from megatron_vlm.data.loader.opening import maker_spec
from megatron_vlm.data.micro_batch_arrays import ArrayMaker
from megatron_vlm.data.step_plan import MixtureReport, StepPlan

TOKENS = TokenCounts(50_000, 0, 1, 2)
WORDS, ROWS, SIZE = 30, 144, 256
#: 11 captioned pictures fill a pack
SHAPE = StepShape(0, 2048, 6, 6, SIZE, 1, ROWS)
A_PACK = SHAPE.sequence_length // (ROWS + WORDS)
A_SHARD = 100


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of 256 px whose detail falls off with its scale, as that of photographs does: 20 to 28 kB."""
    picture = np.zeros((SIZE, SIZE, 3))
    for octave, side in enumerate((4, 8, 16, 32, 64, 128, 256)):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        picture += np.asarray(noise.resize((SIZE, SIZE), Image.Resampling.BICUBIC), float) * 0.62**octave
    picture = (picture - picture.min()) / (picture.max() - picture.min()) * 255
    stream = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def write(folder: Path, count: int) -> int:
    """The tars and the indexed dataset; the mean size of a picture in bytes."""
    rng = np.random.default_rng(0)
    (folder / "shards").mkdir()
    encoded = [photograph(rng) for _ in range(count)]
    with IndexedWriter(folder / "ours", np.uint16, multimodal=True) as writer:
        for picture in encoded:
            writer.add_image(picture)
            writer.add_text([*rng.integers(3, 50_000, WORDS - 1).tolist(), TOKENS.eod_id])
            writer.end_document()
    for first in range(0, count, A_SHARD):
        with tarfile.open(folder / "shards" / f"{first:06d}.tar", "w") as tar:
            for number, picture in enumerate(encoded[first : first + A_SHARD], first):
                for suffix, data in (("jpg", picture), ("txt", b"a word " * WORDS)):
                    header = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    header.size = len(data)
                    tar.addfile(header, io.BytesIO(data))
    return sum(map(len, encoded)) // count


def plans(documents: int) -> Iterator[StepPlan]:
    """Steps without end, the documents in a random order."""
    rng, step = np.random.default_rng(1), 0
    queue: list[int] = []
    while True:
        packs = []
        for _ in range(SHAPE.global_batch_size):
            if len(queue) < A_PACK:
                queue = rng.permutation(documents).tolist()
            taken, queue = queue[:A_PACK], queue[A_PACK:]
            packs.append(tuple(Span(0, document, 0, ROWS + WORDS - 1, 1) for document in taken))
        yield StepPlan(step, SHAPE, tuple(packs), {}, MixtureReport())
        step += 1


class Copied:
    """In place of a decoder: the encoded bytes, at the start of where the pixels would be."""

    name = "none"

    def decode(self, encoded: Sequence[bytes], out: Any) -> dict[int, str]:
        for data, place in zip(encoded, out, strict=True):
            place.reshape(-1)[: len(data)] = np.frombuffer(data, np.uint8)
        return {}


def ours_raw(source: DocumentSource, documents: int, samples: int) -> float:
    maker, steps = ArrayMaker([source], TOKENS, Copied()), plans(documents)
    maker(next(steps).packs, SHAPE)
    begun, seen = time.perf_counter(), 0
    while seen < samples:
        seen += maker(next(steps).packs, SHAPE).pictures
    return (time.perf_counter() - begun) * samples / seen


def ours_decoded(source: DocumentSource, documents: int, samples: int, workers: int, decoder: Any) -> float:
    spec = maker_spec({"ours": source}, TOKENS, True, PicturesConfig(decoder=decoder))
    config = LoaderConfig(workers=workers, prefetch_steps=2)

    def everything(plan: StepPlan) -> list[int]:
        return list(range(len(plan.packs)))

    with BatchLoader(spec, plans(documents), everything, config, [SHAPE]) as steps:
        next(steps)
        begun, seen = time.perf_counter(), 0
        while seen < samples:
            seen += sum(batch.pictures for batch in next(steps).batches)
        return (time.perf_counter() - begun) * samples / seen


class Peers:
    """Another interpreter that runs `loader_peers.py`, and what it can run."""

    def __init__(self, python: str, folder: Path) -> None:
        script = str(Path(__file__).with_name("loader_peers.py"))
        self.process = subprocess.Popen(
            [python, script, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        told = self._read()
        self.ways: list[str] = told["ways"]
        for name, reason in told["absent"].items():
            print(f"{name} is left out: {reason}")

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the peers' interpreter ended; run benchmarks/loader_peers.py with it by hand to see why")
        return json.loads(line)

    def seconds(self, way: str, samples: int) -> float | None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{way} {samples}\n")
        self.process.stdin.flush()
        answer = self._read()
        if "error" in answer:
            print(f"{way}: {answer['error']}")
            return None
        return answer["seconds"]


def main() -> None:
    arguments = parser(__doc__, runs=3)
    arguments.add_argument("--pictures", type=int, default=2000, help="of the dataset (default: %(default)s)")
    arguments.add_argument("--samples", type=int, default=4000, help="of a run of a way (default: %(default)s)")
    arguments.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has the peers")
    args = arguments.parse_args()
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write(folder, args.pictures)
        source = DocumentSource("ours", IndexedReader(folder / "ours"), TOKENS, ROWS)
        print(f"{args.pictures} JPEGs of {SIZE} px, {size} bytes on average", flush=True)
        peers = Peers(args.peers, folder)
        ours: dict[str, Any] = {"raw: ours, 0 workers": lambda n: ours_raw(source, args.pictures, n)}
        for workers in (0, 2):
            for decoder in ("simplejpeg", "pillow"):
                ours[f"decoded: ours by {decoder}, {workers} workers"] = lambda n, w=workers, d=decoder: ours_decoded(
                    source, args.pictures, n, w, d
                )
        for run in range(args.runs + 1):  # the first warms up
            samples = args.samples if run else min(64, args.samples)
            for way in [*ours, *peers.ways]:
                seconds = ours[way](samples) if way in ours else peers.seconds(way, samples)
                if run and seconds is not None:
                    print(f"run {run}: {way}: {samples / seconds:.0f}", file=sys.stderr, flush=True)
                    rates.setdefault(way, []).append(samples / seconds)
        peers.process.terminate()
    medians = {way: statistics.median(found) for way, found in rates.items()}
    for kind in ("raw", "decoded"):
        best_of_ours = max(rate for way, rate in medians.items() if way.startswith(f"{kind}: ours"))
        print(f"\n{kind:<58}{'samples/s':>10}{'least':>8}{'most':>8}{'ours, best, over it':>21}")
        for way, rate in sorted(medians.items(), key=lambda item: -item[1]):
            if way.startswith(kind):
                least, most = min(rates[way]), max(rates[way])
                print(f"{way.partition(': ')[2]:<58}{rate:>10.0f}{least:>8.0f}{most:>8.0f}{best_of_ours / rate:>21.2f}")
    report(args, rates)


if __name__ == "__main__":
    main()
