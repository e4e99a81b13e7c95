"""Documents into packs: a pure function of seed, curriculum and datasets, the same on every rank.

Packs are filled one after another from a short look-ahead of each source. The source that is furthest behind its share goes
first; of its documents the oldest opens a pack, and after that the longest that fits is taken; a long text is cut where the
hole ends. So a prefix of the run has the planned mixture, and padding is left only where nothing fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.curriculum import StageConfig
from megatron_vlm.config.data import DataConfig
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.mixture import Mixture
from megatron_vlm.data.order import epoch_order
from megatron_vlm.errors import DataError


class _Stream:
    """The documents of one source in order, epoch after epoch, and a queue of the next ones."""

    def __init__(self, index: int, source: DocumentSource, seed: int, data: DataConfig) -> None:
        self.index, self.source, self.seed, self.data = index, source, seed, data
        self.epoch = self.next = 0
        self._order: npt.NDArray[np.int64] | None = None
        #: waiting pieces: [document, first position]
        self.queue: list[list[int]] = []
        self.truncated = self.dropped = 0

    def refill(self) -> None:
        passes = 0
        while len(self.queue) < self.data.lookahead:
            if self._order is None:
                self._order = epoch_order(self.source.documents, self.seed, self.source.name, self.epoch)
            if self.next >= len(self._order):
                self.epoch, self.next, self._order = self.epoch + 1, 0, None
                passes += 1
                if passes > 1 and not self.queue:
                    raise DataError(
                        f"{self.source.reader.prefix}: no document fits a pack of {self.data.sequence_length} positions; "
                        f"raise data.sequence_length or set data.long_documents to split"
                    )
                continue
            document = int(self._order[self.next])
            self.next += 1
            if self._usable(document):
                self.queue.append([document, 0])

    def _usable(self, document: int) -> bool:
        if self.source.positions[document] <= self.data.sequence_length:
            return True
        if self.source.first_ids_needed(document) > self.data.sequence_length:
            self.dropped += 1  # its pictures alone are more than a pack
            return False
        if self.data.long_documents == "drop":
            self.dropped += 1
            return False
        return True

    def take(self, space: int) -> Span | None:
        """The next span of at most `space` positions, or None when nothing of this source fits."""
        self.refill()
        capacity = self.data.sequence_length
        if space == capacity:
            return self._cut(0, space)
        best, longest = -1, 0
        for place, (document, start) in enumerate(self.queue):
            left = int(self.source.positions[document]) - start
            if longest < left <= space:
                best, longest = place, left
        if best >= 0:
            return self._cut(best, space)
        if self.data.fill_holes and self.data.long_documents == "split" and space >= self.data.min_piece:
            for place, (document, start) in enumerate(self.queue):
                left = int(self.source.positions[document]) - start
                if not self.source.pictures[document] and left - space >= self.data.min_piece:
                    return self._cut(place, space)
        return None

    def _cut(self, place: int, space: int) -> Span:
        document, start = self.queue[place]
        left = int(self.source.positions[document]) - start
        length = min(left, space)
        if length == left:
            del self.queue[place]
        elif self.data.long_documents == "truncate" or self.source.pictures[document]:
            # a text after pictures keeps them in view only here, so its rest is left out
            del self.queue[place]
            self.truncated += 1
        else:
            self.queue[place][1] += length
        return Span(self.index, document, start, length)

    def state(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "next": self.next,
            "queue": [list(piece) for piece in self.queue],
            "truncated": self.truncated,
            "dropped": self.dropped,
            "fingerprint": self.source.reader.fingerprint,
        }

    def load(self, state: dict[str, Any]) -> None:
        if state["fingerprint"] != self.source.reader.fingerprint:
            raise DataError(
                f"{self.source.reader.prefix} is not the dataset that the checkpoint was trained on (its fingerprint "
                f"changed); give the old one, or start a new run"
            )
        self.epoch, self.next, self._order = int(state["epoch"]), int(state["next"]), None
        self.queue = [[int(d), int(s)] for d, s in state["queue"]]
        self.truncated, self.dropped = int(state["truncated"]), int(state["dropped"])


@dataclass
class FillCount:
    """Positions of packs so far: filled, visual among them, padded."""

    filled: int = 0
    visual: int = 0
    padded: int = 0


class PackPlanner:
    """Makes the packs of the run, one after another. `state()` and `load()` move it to any pack exactly."""

    def __init__(
        self, sources: dict[str, DocumentSource], stages: Sequence[StageConfig], data: DataConfig, seed: int
    ) -> None:
        self.sources, self.stages, self.data = sources, tuple(stages), data
        self.names = list(sources)
        self.streams = {n: _Stream(i, source, seed, data) for i, (n, source) in enumerate(sources.items())}
        for stage in self.stages:
            Mixture(stage, sources)  # a share that cannot be reached is refused before the run starts
        self.stage = -1
        self.mixture: Mixture
        self.fill = FillCount()
        self.enter_stage(0)

    def enter_stage(self, stage: int) -> None:
        """Begin a stage's account; the queues of the sources go on. Nothing happens inside the stage."""
        if stage != self.stage:
            self.stage = stage
            self.mixture = Mixture(self.stages[stage], self.sources)

    def next_pack(self) -> list[Span]:
        """Spans whose lengths sum to at most `data.sequence_length`; at least one."""
        capacity = self.data.sequence_length
        space, spans = capacity, []
        while space:
            for name in self.mixture.candidates(space, capacity):
                span = self.streams[name].take(space)
                if span is not None:
                    break
            else:
                break
            source = self.sources[name]
            visual = int(source.pictures[span.document]) * source.image_tokens if span.start == 0 else 0
            self.mixture.record(name, span.length, visual, span.start == 0)
            self.fill.visual += visual
            spans.append(span)
            space -= span.length
        self.fill.filled += capacity - space
        self.fill.padded += space
        return spans

    def next_packs(self, count: int) -> list[list[Span]]:
        return [self.next_pack() for _ in range(count)]

    def state(self) -> dict[str, Any]:
        """Plain numbers and lists, for a checkpoint."""
        return {
            "stage": self.stage,
            "accounts": {name: account.to_map() for name, account in self.mixture.accounts.items()},
            "streams": {name: stream.state() for name, stream in self.streams.items()},
            "fill": [self.fill.filled, self.fill.visual, self.fill.padded],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Raises DataError when a dataset changed since the state was taken."""
        self.stage = -1
        self.enter_stage(int(state["stage"]))
        for name, values in state["accounts"].items():
            if name in self.mixture.accounts:
                account = self.mixture.accounts[name]
                account.tokens, account.visual = int(values["tokens"]), int(values["visual"])
                account.documents = int(values["documents"])
        for name, stream in self.streams.items():
            if name in state["streams"]:
                stream.load(state["streams"][name])
        self.fill = FillCount(*(int(n) for n in state["fill"]))
