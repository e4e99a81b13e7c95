"""Saving and loading a checkpoint on the host platform, against moving as many bytes to and from the same disk.

  python benchmarks/bench_checkpoint.py [--megabytes 300] [--ranks 1 2] [--folder DIR] [--runs 3] [--json FILE]

A language model with its optimiser state, fp32, on each number of gloo ranks, tensor-parallel. In each run, turn by turn:

  save         `checkpoint.async_save: false`: planned, written, flushed, hashed, renamed
  disk write   as many bytes in as many files, written and flushed by one process: no hash, no plan
  stop         what a step waits for a save beside it: the three below
  gather       of it, megatron-core's gathering of the distributed optimiser's shards
  plan         of it, megatron-core's plan, with its clones of what are views
  copy         of it, ours: into the memory that the writer process shares
  memcpy       libc's memcpy of as many bytes, of memory that was touched before
  load         verified and loaded; files dropped from the page cache before
  disk read    as many bytes read from the same files, dropped from the page cache before

Ratios are of medians. The disk is the one of `--folder`.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from measuring import Timing, copy_bytes, parser, report, table

from megatron_vlm.cli.quiet import quiet_host_warnings
from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig

TOKENS = TokenCounts(vocab_size=4096, eod_id=0, image_token_id=1, pad_id=2)
COPIES = 4  # weights, master weights and two moments, 4 bytes each


def configuration(megabytes: float, ranks: int, folder: Path) -> RunConfig:
    """About `megabytes` of checkpoint: layers of 512 as many as it takes."""
    layer = 4 * 512 * 512 + 3 * 512 * 2048
    layers = max(1, round(megabytes * 1e6 / 4 / COPIES / layer))
    fields = {
        "data.sources": "{text: unused}",
        "data.tokenizer": "unused",
        "curriculum.stages": "[{name: text, sources: {text: 1}, freeze: [vision, projector]}]",
        "model.language": f"{{num_layers: {layers}, hidden_size: 512, num_attention_heads: 8, ffn_hidden_size: 2048}}",
        "schedule.train_steps": 1000,
        "parallel.tensor_model_parallel_size": ranks,
        "parallel.sequence_parallel": "false",
        "checkpoint.directory": folder,
        "checkpoint.keep_last": 1,
    }
    return load_config(preset="tiny", overrides=[f"--{name}={value}" for name, value in fields.items()])


def drop_cache(files: list[Path]) -> None:
    """Ask the kernel to forget what it has read of clean files."""
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def disk_write(files: list[tuple[Path, int]]) -> None:
    block = os.urandom(8 << 20)
    for path, size in files:
        with path.open("wb", buffering=0) as file:
            for at in range(0, size, len(block)):
                file.write(block[: size - at])
            os.fsync(file.fileno())


def disk_read(files: list[Path]) -> None:
    buffer = bytearray(8 << 20)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def one_rank(rank: int, world: int, store: str, megabytes: float, folder: Path, runs: int, pipe: Any) -> None:
    """Every rank saves and loads; rank 0 measures, and moves the raw bytes while the others wait."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    from megatron_vlm.parallel.topology import initialize
    from megatron_vlm.training import checkpoint as checkpoints
    from megatron_vlm.training.engine import Engine

    config = configuration(megabytes, world, folder)
    topology = initialize(config.parallel, config.schedule.seed)
    torch.set_num_threads(1)
    engine = Engine(config, TOKENS, topology)
    engine.enter_stage(0)
    saver = checkpoints.Saver(config, topology.device)
    seconds: dict[str, list[float]] = {}

    def clock(name: str, call: Any, alone: bool = False) -> None:
        dist.barrier()
        begun = time.perf_counter()
        if rank == 0 or not alone:
            call()
        dist.barrier()
        seconds.setdefault(name, []).append(time.perf_counter() - begun)

    def load() -> None:
        found = checkpoints.choose_in(folder, verify=True)
        checkpoints.load_training(engine, config, found, checkpoints.read_run_file(found))

    size = 0
    for turn in range(runs + 1):
        clock("save", lambda: saver.save(engine, 1, {}, {}, last=True))
        files = sorted((folder / "step-00000001").iterdir())
        sizes = [path.stat().st_size for path in files]
        size = sum(sizes)
        raw = [(folder / f"raw-{number}", length) for number, length in enumerate(sizes)]
        clock("disk write", lambda raw=raw: disk_write(raw), alone=True)
        clock("stop", lambda: saver.save(engine, 1, {}, {}, last=False))
        saver.finish()
        assert saver.last_stop is not None
        for part in ("gather", "plan", "copy"):
            seconds.setdefault(part, []).append(getattr(saver.last_stop, part))
        if turn == 0:
            source, target = (torch.ones(size // world, dtype=torch.uint8) for _ in range(2))
        clock("memcpy", copy_bytes(target, source))
        files = sorted((folder / "step-00000001").iterdir())
        drop_cache(files)
        clock("load", load)
        drop_cache([path for path, _ in raw])
        clock("disk read", lambda raw=raw: disk_read([path for path, _ in raw]), alone=True)
    saver.close()
    if rank == 0:
        pipe.send((size, {name: values[1:] for name, values in seconds.items()}))
        pipe.close()
    dist.barrier()
    os._exit(0)  # forked: gloo's threads do not survive the interpreter's end


def measure_ranks(world: int, megabytes: float, where: Path | None, runs: int) -> tuple[int, dict[str, Timing]]:
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        receive, send = context.Pipe(duplex=False)
        arguments = [world, str(folder / "store"), megabytes, folder / "checkpoints", runs, send]
        ranks = [context.Process(target=one_rank, args=(rank, *arguments)) for rank in range(world)]
        for process in ranks:
            process.start()
        send.close()
        try:
            size, seconds = receive.recv()
        except EOFError:
            sys.exit(f"bench_checkpoint: a rank of {world} died")
        finally:
            for process in ranks:
                process.join()
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return size, {name: Timing(statistics.median(some), min(some), max(some)) for name, some in seconds.items()}


def main() -> None:
    arguments = parser(__doc__, runs=3)
    arguments.add_argument("--megabytes", type=float, default=300, help="of the checkpoint (default: %(default)s)")
    arguments.add_argument("--ranks", type=int, nargs="+", default=[1, 2], metavar="N", help="(default: 1 2)")
    arguments.add_argument("--folder", type=Path, help="on the disk to be measured (default: the temporary folder)")
    args = arguments.parse_args()
    quiet_host_warnings()
    import megatron_vlm.training.checkpoint  # noqa: F401  once, before ranks are forked

    results = {}
    for world in args.ranks:
        size, timings = measure_ranks(world, args.megabytes, args.folder, args.runs)
        print(f"{world} rank(s), {size / 1e6:.0f} MB")
        parts = ("stop", "gather", "plan", "copy")
        for ours, base in ((("save",), "disk write"), (parts, "memcpy"), (("load",), "disk read")):
            print(table({name: timings[name] for name in (*ours, base)}, base))
        results[f"{world} ranks"] = {"bytes": size, **timings}
    args.folder = None if args.folder is None else str(args.folder)
    report(args, results)


if __name__ == "__main__":
    main()
