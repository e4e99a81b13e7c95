"""How micro-batches are made ready: by processes beside each rank, and how far ahead of the training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoaderConfig:
    #: processes of each rank that read, decode and assemble ahead; 0: the rank does it itself, while its device waits. What
    #: is trained on is the same, whatever the number
    workers: int = 2
    #: steps made ready ahead of the one in training. Memory: micro-batches of so many steps and one more
    prefetch_steps: int = 2
    #: seconds that a worker may take for one micro-batch; then it is named, killed, and its micro-batch made anew
    timeout_s: float = 120.0
