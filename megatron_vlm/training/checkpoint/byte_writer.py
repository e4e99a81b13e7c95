"""The process beside a rank that brings a copied checkpoint to disk: bytes of shared memory to files, flushed and hashed.

  python byte_writer.py DESCRIPTOR PARENT

It is started as a program of its own and uses the standard library alone. A fork of the rank would carry the locks of
gloo's, NCCL's and the loader's threads, held by threads that the child does not have; a spawned worker would import the
training program again. All that this one knows is a memory descriptor that it inherits and lines of JSON::

    -> {"size": bytes of the memory, "block_bytes": n, "files": [[path, first byte, bytes], ...]}
    <- {"files": {path: {"size": bytes, "sha256": [hex a block, ...]}, ...}}    or    <- {"error": text}

It ends with its input, and is killed by the kernel when the rank dies: nothing of a dead rank goes on writing.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

_PIECE = 8 << 20  # bytes a write: an error of a full disk comes soon
_FILES_AT_ONCE = 2
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies (Linux), and end now if it is dead already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _digest(block: memoryview) -> str:
    with block:
        return hashlib.sha256(block).hexdigest()


def write_file(path: str, content: memoryview, block_bytes: int, pool: ThreadPoolExecutor) -> dict[str, object]:
    """A new file, flushed to disk; its blocks are hashed on `pool` meanwhile. What fails is told under `error`.

    No exception leaves: its frames would hold on to the shared memory.
    """
    starts = range(0, len(content), block_bytes)
    digests = [pool.submit(_digest, content[at : at + block_bytes]) for at in starts]
    failed = None
    try:
        with open(path, "xb", buffering=0) as file:
            at = 0
            while at < len(content):
                with content[at : at + _PIECE] as piece:
                    at += file.write(piece)
            os.fsync(file.fileno())
    except OSError as error:
        failed = f"{path}: {error.strerror or error}"
    written: dict[str, object] = {"size": len(content), "sha256": [digest.result() for digest in digests]}
    content.release()
    return written if failed is None else {"error": failed}


def write_files(memory: memoryview, request: dict[str, object]) -> dict[str, object]:
    """The reply to one request."""
    block_bytes, entries = request["block_bytes"], request["files"]
    assert isinstance(block_bytes, int)
    assert isinstance(entries, list)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as hashing, ThreadPoolExecutor(_FILES_AT_ONCE) as writing:
        jobs = {
            path: writing.submit(write_file, path, memory[first : first + size], block_bytes, hashing)
            for path, first, size in entries
        }
        written = {path: job.result() for path, job in jobs.items()}
    failed = [str(one["error"]) for one in written.values() if "error" in one]
    return {"error": failed[0]} if failed else {"files": written}


def main() -> None:
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    # a scheduler signals every process of a job: the rank decides what becomes of its checkpoint
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    die_with(parent)
    os.nice(5)  # where cores are short, the step goes first
    for line in sys.stdin:
        request = json.loads(line)
        # mapped for each request: the rank's memory may have grown
        with mmap.mmap(descriptor, request["size"], access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as memory:
            reply = write_files(memory, request)
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
