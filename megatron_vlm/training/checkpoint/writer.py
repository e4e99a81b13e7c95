"""A rank's handle of its writer process (`byte_writer.py`): hand over files in shared memory, ask if they are on disk."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_vlm.data.checksums import BLOCK_BYTES
from megatron_vlm.training.checkpoint import byte_writer
from megatron_vlm.training.checkpoint.checksums import FileChecksum
from megatron_vlm.training.checkpoint.shared_memory import SharedMemory


@dataclass(frozen=True)
class Written:
    """What became of one rank's files: their checksums by path, or why there are none."""

    files: dict[str, FileChecksum]
    error: str | None = None


class WriterProcess:
    """One process, started at the first use and kept. It writes one request at a time."""

    def __init__(self) -> None:
        self.memory = SharedMemory()
        self._process: subprocess.Popen[bytes] | None = None
        self._reply: bytes = b""
        self._done: Written | None = None

    def submit(self, files: list[tuple[str, int, int]]) -> None:
        """Begin to write files: (path, first byte, bytes) of `memory` each. What fails is told by `result`."""
        self._reply, self._done = b"", None
        request = {"size": self.memory.size, "block_bytes": BLOCK_BYTES, "files": files}
        try:
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._process is not None
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            self._done = Written({}, f"its writer process cannot be used: {error}")

    def _start(self) -> None:
        descriptor = self.memory.descriptor
        # a fresh program, run by its path: none of this package is imported there
        command = [sys.executable, "-I", "-S", str(Path(byte_writer.__file__)), str(descriptor), str(os.getpid())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[descriptor])

    def result(self, wait: bool) -> Written | None:
        """What became of the files; None while they are being written, if it is not to wait."""
        while self._done is None:
            assert self._process is not None
            assert self._process.stdout is not None
            pipe = self._process.stdout.fileno()
            if not wait and not select.select([pipe], [], [], 0)[0]:
                return None
            piece = os.read(pipe, 1 << 16)
            self._reply += piece
            if not piece:
                self._done = Written({}, f"its writer process died (exit code {self._process.wait()})")
            elif self._reply.endswith(b"\n"):
                reply = json.loads(self._reply)
                self._done = Written(reply.get("files", {}), reply.get("error"))
        return self._done

    @property
    def process_id(self) -> int | None:
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the process at once, whatever it does, and free the memory."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process = None
        self.memory.close()
