"""`megatron-vlm preprocess` as whole processes, against the tokenizer's own rate, Megatron's way, and reading a tar.

  python benchmarks/bench_preprocess.py [--megabytes 100] [--pairs 10000] [--runs 3] [--folder DIR] [--json FILE]

Text: .jsonl of documents of lognormal length (median 2000 characters) drawn from the bundled prose, and a BPE of
--vocabulary trained on it. Seconds are of the CPU, of all processes of a command, its start included:
  gigatoken               encode_files, ids to uint16, one write: nothing else
  preprocess              the command: reads, checks, encodes, writes .bin, .idx, metadata and checksums
  tokenizers              encode_batch of lists of 512 documents that are in memory, nothing else; one thread
  tokenizers, a script    the same as a whole process: it opens the tokenizer, reads the lines, and writes the ids as uint16
  preprocess, tokenizers  the command with that backend
  a document at a time    what Megatron-LM's preprocess_data.py does with each: json, encode, a tensor, megatron-core's
                          IndexedDatasetBuilder; by its libraries, in one process, on --slow-megabytes
Pairs: an img2dataset tar of JPEGs of about 24 kB. Seconds of the clock, one process, the file in the page cache:
  tarfile                 Python's tarfile reads every member, nothing else
  copy and flush          the tar copied and flushed to the disk: what keeping as many bytes takes at least
  preprocess              the command, pictures checked by their structure
  preprocess, 2 workers   two tars of half the pictures each
Every command runs once before it is timed, with its bytecode kept, as that of an installed package is; what an earlier run
wrote is removed before each, as to replace a file of 300 MB takes a third of a second.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Timing, parser, report, table

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "megatron_vlm.cli.main", "preprocess"]

GIGATOKEN = """
import sys
import gigatoken, numpy as np
tokenizer = gigatoken.Tokenizer(sys.argv[1])
ids = tokenizer.backend.encode_files(gigatoken.JsonlFileSource([sys.argv[2]]), parallel=False)
np.asarray(ids.layout.content.data).astype(np.uint16).tofile(sys.argv[3])
"""
TOKENIZERS = """
import sys, time, json
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
texts = [json.loads(line)["text"] for line in open(sys.argv[2], encoding="utf-8")]
start = time.process_time()
for at in range(0, len(texts), 512):
    tokenizer.encode_batch_fast(texts[at : at + 512], add_special_tokens=False)
print(time.process_time() - start)
"""
TOKENIZERS_SCRIPT = """
import sys, json
import numpy as np
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
texts = [json.loads(line)["text"] for line in open(sys.argv[2], encoding="utf-8")]
with open(sys.argv[3], "wb") as out:
    for at in range(0, len(texts), 512):
        for found in tokenizer.encode_batch_fast(texts[at : at + 512], add_special_tokens=False):
            out.write(np.array(found.ids, np.uint16).tobytes())
"""
COPY = """
import os, shutil, sys
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
    os.fsync(target.fileno())
"""
ONE_BY_ONE = """
import sys, json
import numpy as np, torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
builder = IndexedDatasetBuilder(sys.argv[3] + ".bin", dtype=np.uint16)
for line in open(sys.argv[2], encoding="utf-8"):
    ids = tokenizer.encode(json.loads(line)["text"]).ids + [0]
    builder.add_document(torch.tensor(ids, dtype=torch.int64), [len(ids)])
builder.finalize(sys.argv[3] + ".idx")
"""


def prose() -> list[str]:
    """The sentences of the bundled prose."""
    import zstandard

    sentences = []
    for path in sorted((ROOT / "examples/sample_data/prose").glob("train-*.jsonl.zst")):
        text = zstandard.ZstdDecompressor().stream_reader(path.open("rb")).read().decode()
        sentences += [s + "." for line in text.splitlines() for s in json.loads(line)["text"].split(".") if s]
    return sentences


def write_text(path: Path, megabytes: float, sentences: list[str]) -> None:
    rng = np.random.default_rng(0)
    written = number = 0
    with path.open("w", encoding="utf-8") as stream:
        while written < megabytes * 1e6:
            wanted, parts = int(rng.lognormal(np.log(2000), 1.0)) + 20, [f"{rng.integers(1 << 40)}"]
            while sum(map(len, parts)) < wanted:
                at = int(rng.integers(len(sentences)))
                parts += sentences[at : at + 3]
            line = json.dumps({"id": number, "text": "".join(parts)}, ensure_ascii=False) + "\n"
            written += stream.write(line)
            number += 1


def train(path: Path, sentences: list[str], vocabulary: int) -> None:
    from megatron_vlm.data.tokenizer_training import train_bpe

    train_bpe(iter(sentences), vocabulary).save(path)


def write_tar(path: Path, pictures: int, first: int = 0) -> None:
    """JPEGs of noise that is smooth enough to take about 24 kB."""
    from PIL import Image

    rng = np.random.default_rng(first)
    made = []
    for _ in range(64):
        small = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(small).resize((512, 384), Image.Resampling.BILINEAR).save(stream, "JPEG", quality=60)
        made.append(stream.getvalue())
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes) -> None:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))

        for number in range(first, first + pictures):
            caption = f"a picture of the things that have number {number}"
            add(f"{number:09d}.jpg", made[number % 64])
            add(f"{number:09d}.json", json.dumps({"caption": caption, "status": "success", "width": 512}).encode())
            add(f"{number:09d}.txt", caption.encode())
    print(f"pairs: {pictures} pictures of {statistics.mean(map(len, made)) / 1e3:.0f} kB")


@dataclass(frozen=True)
class Spent:
    """By a command and its children: seconds of the clock and of the CPU, most memory of a process, what was printed."""

    wall: float
    cpu: float
    megabytes: float
    printed: str


def run(command: list[str], bytecode: Path) -> Spent:
    """`bytecode` is the folder that keeps the compiled modules of all commands."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command[:6])} ... failed:\n{err.read()}")
        return Spent(elapsed, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, out.read())


def spent(command: list[str], clock: str, folder: Path) -> float:
    """Seconds of a command by a clock, "wall" or "cpu", or what it printed. What it wrote before is removed first."""
    for path in folder.glob("out-*"):
        path.unlink()
    found = run(command, folder / "bytecode")
    return float(found.printed) if clock == "printed" else float(getattr(found, clock))


def with_input(command: list[str], source: Path, other: Path) -> list[str]:
    return [str(other) if word == str(source) else word for word in command]


def timed(commands: dict[str, tuple[list[str], str]], runs: int, folder: Path) -> dict[str, Timing]:
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, (command, clock) in commands.items():
            seconds[name].append(spent(command, clock, folder))
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}


def text(args: argparse.Namespace, folder: Path) -> dict[str, Timing]:
    sentences = prose()
    source, slow, tokenizer = folder / "text.jsonl", folder / "slow.jsonl", folder / "tokenizer"
    write_text(source, args.megabytes, sentences)
    write_text(slow, args.slow_megabytes, sentences)
    train(tokenizer, sentences, args.vocabulary)
    definition = str(tokenizer / "tokenizer.json")
    ours = [*COMMAND, "text", "--input", str(source), "--tokenizer", str(tokenizer), "--output", str(folder / "out-text")]
    script = [sys.executable, "-c"]
    one = folder / "one.jsonl"
    write_text(one, 1e-6, sentences)
    for command in (
        [*script, GIGATOKEN, definition, str(one), str(folder / "out-giga.bin")],
        [*script, ONE_BY_ONE, definition, str(one), str(folder / "out-slow")],
        *([*with_input(ours, source, one), "--tokenizer-backend", name] for name in ("auto", "tokenizers")),
    ):
        run(command, folder / "bytecode")
    found = timed(
        {
            "gigatoken": ([*script, GIGATOKEN, definition, str(source), str(folder / "out-giga.bin")], "cpu"),
            "preprocess": ([*ours, "--workers", "1"], "cpu"),
            "preprocess, 2 workers": ([*ours, "--workers", "2"], "cpu"),
        },
        args.runs,
        folder,
    )
    rate = {name: args.megabytes / timing.median for name, timing in found.items()}
    slow_ours = with_input(ours, source, slow)
    slower = timed(
        {
            "tokenizers": ([*script, TOKENIZERS, definition, str(slow)], "printed"),
            "tokenizers, a script": (
                [*script, TOKENIZERS_SCRIPT, definition, str(slow), str(folder / "out-script.bin")],
                "cpu",
            ),
            "preprocess, tokenizers": ([*slow_ours, "--workers", "1", "--tokenizer-backend", "tokenizers"], "cpu"),
            "a document at a time": ([*script, ONE_BY_ONE, definition, str(slow), str(folder / "out-slow")], "cpu"),
        },
        1,
        folder,
    )
    small, large = (run([*with_input(ours, source, path), "--workers", "1"], folder / "bytecode") for path in (one, source))
    rate |= {name: args.slow_megabytes / timing.median for name, timing in slower.items()}
    print(f"one document takes {small.wall:.2f} s; memory {small.megabytes:.0f} MB, of all of them {large.megabytes:.0f} MB")
    print(f"text, {args.megabytes} MB, CPU seconds\n" + table(found, "gigatoken"))
    print(f"text, {args.slow_megabytes} MB, CPU seconds\n" + table(slower, "tokenizers"))
    print("MB a CPU second: " + ", ".join(f"{name} {value:.1f}" for name, value in rate.items()))
    print(f"the command is {rate['preprocess'] / rate['a document at a time']:.1f} x as fast as a document at a time")
    return found | slower


def pairs(args: argparse.Namespace, folder: Path) -> dict[str, Timing]:
    whole, halves = folder / "pairs.tar", [folder / "half-0.tar", folder / "half-1.tar"]
    write_tar(whole, args.pairs)
    for number, half in enumerate(halves):
        write_tar(half, args.pairs // 2, number * (args.pairs // 2))
    reader = "import sys, tarfile\nfor m in (t := tarfile.open(sys.argv[1])):\n    t.extractfile(m).read(); t.members = []\n"
    ours = [*COMMAND, "image-text", "--tokenizer", str(folder / "tokenizer"), "--output", str(folder / "out-pairs")]
    run([*ours, "--input", str(whole)], folder / "bytecode")
    found = timed(
        {
            "tarfile": ([sys.executable, "-c", reader, str(whole)], "wall"),
            "copy and flush": ([sys.executable, "-c", COPY, str(whole), str(folder / "out-copy")], "wall"),
            "preprocess": ([*ours, "--input", str(whole), "--workers", "1"], "wall"),
            "preprocess, 2 workers": ([*ours, "--input", *map(str, halves), "--workers", "2"], "wall"),
        },
        args.runs,
        folder,
    )
    print(f"pairs, {whole.stat().st_size / 1e6:.0f} MB, seconds\n" + table(found, "tarfile"))
    return found


def main() -> None:
    arguments = parser(__doc__, runs=3)
    arguments.add_argument("--megabytes", type=float, default=100.0, help="of text (default: %(default)s)")
    arguments.add_argument("--slow-megabytes", type=float, default=10.0, help="for slow ways (default: %(default)s)")
    arguments.add_argument("--vocabulary", type=int, default=32768, help="of the BPE (default: %(default)s)")
    arguments.add_argument("--pairs", type=int, default=10_000, help="captioned pictures (default: %(default)s)")
    arguments.add_argument("--folder", type=Path, help="where files are made, and left (default: a temporary one)")
    args = arguments.parse_args()
    results: dict[str, Any] = {}
    for folder in _folder(args.folder):
        results = {"text": text(args, folder), "pairs": pairs(args, folder)}
    report(args, results)


def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


if __name__ == "__main__":
    main()
