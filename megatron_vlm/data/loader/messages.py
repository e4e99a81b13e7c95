"""What a rank and a worker say to each other: JSON and numbers, a few hundred bytes a micro-batch, and no pickles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.broken_pictures import BrokenPicture
from megatron_vlm.data.documents import Span
from megatron_vlm.data.loader.slots import SharedSlots
from megatron_vlm.data.loader.span_source import SourcePlace

Packs = Sequence[Sequence[Span]]


@dataclass(frozen=True, slots=True)
class MakerSpec:
    """What makes the micro-batches of a run, to be opened in any process.

    Attributes:
        sources: of the run, in the order of the spans' numbers.
        decode_pictures: False on ranks that hold no encoder: they read no picture.
        pictures: how they are decoded and resized; a named decoder, since every process must take the same.
        pixel_mean: of the encoder, the colour beside letterboxed pictures.
    """

    sources: tuple[SourcePlace, ...]
    tokens: TokenCounts
    decode_pictures: bool
    pictures: PicturesConfig = PicturesConfig()
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """The first message to a worker."""

    maker: MakerSpec
    slots: int
    slot_bytes: int

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, message: bytes) -> WorkerTask:
        told = json.loads(message)
        maker = told["maker"]
        sources = tuple(SourcePlace(**source) for source in maker["sources"])
        spec = MakerSpec(
            sources,
            TokenCounts(**maker["tokens"]),
            maker["decode_pictures"],
            PicturesConfig(**maker["pictures"]),
            tuple(maker["pixel_mean"]),
        )
        return cls(spec, told["slots"], told["slot_bytes"])


@dataclass(frozen=True, slots=True)
class MicroBatchJob:
    """A micro-batch to be made: its number in the run's order, the slot it is written to, its spans and shape.

    The spans travel in the slot itself, which has room for them, as a span has a position or more. So messages are small
    enough never to fill a pipe, and a rank never waits for a worker that does not read.
    """

    number: int
    slot: int
    packs: Packs
    shape: StepShape

    def send(self, connection: Connection, slots: SharedSlots) -> None:
        rows = [(span.source, span.document, span.start, span.length) for pack in self.packs for span in pack]
        self._rows(slots.slot(self.slot), len(rows))[:] = np.array(rows, np.int64).reshape(-1, 4)
        counts = [len(pack) for pack in self.packs]
        head = {"number": self.number, "slot": self.slot, "shape": astuple(self.shape), "packs": counts}
        connection.send_bytes(json.dumps(head).encode())

    @classmethod
    def receive(cls, connection: Connection, slots: SharedSlots) -> MicroBatchJob:
        """Raises EOFError where the rank is gone."""
        head = json.loads(connection.recv_bytes())
        spans = iter([Span(*row) for row in cls._rows(slots.slot(head["slot"]), sum(head["packs"])).tolist()])
        packs = [[next(spans) for _ in range(count)] for count in head["packs"]]
        return cls(head["number"], head["slot"], packs, StepShape(*head["shape"]))

    @staticmethod
    def _rows(slot: memoryview, spans: int) -> npt.NDArray[np.int64]:
        return np.frombuffer(slot, np.int64, 4 * spans).reshape(-1, 4)


@dataclass(frozen=True, slots=True)
class MadeReply:
    """What is known of a micro-batch beside the arrays in its slot. `pixels` says whether there are
    any, or features in their place."""

    number: int
    segments: int
    max_seqlen: int
    image_rows: int
    pictures: int
    pixels: bool
    broken: tuple[BrokenPicture, ...]

    def to_map(self) -> dict[str, Any]:
        made = [self.number, self.segments, self.max_seqlen, self.image_rows, self.pictures, self.pixels]
        return {"made": made, "broken": [astuple(picture) for picture in self.broken]}


@dataclass(frozen=True, slots=True)
class FailedReply:
    """An error in place of a micro-batch. `kind` is the name of a UserError's class, or empty for a defect, of which `text`
    is the traceback."""

    number: int
    kind: str
    text: str

    def to_map(self) -> dict[str, Any]:
        return {"failed": [self.number, self.kind, self.text]}


@dataclass(frozen=True, slots=True)
class ReadyReply:
    """The sources are open."""

    def to_map(self) -> dict[str, Any]:
        return {"ready": True}


Reply = MadeReply | FailedReply | ReadyReply


def send_reply(connection: Connection, reply: Reply) -> None:
    connection.send_bytes(json.dumps(reply.to_map()).encode())


def receive_reply(connection: Connection) -> Reply:
    """Raises EOFError or OSError where the worker is gone."""
    told = json.loads(connection.recv_bytes())
    if "made" in told:
        number, segments, max_seqlen, image_rows, pictures, pixels = told["made"]
        broken = tuple(BrokenPicture(*fields) for fields in told["broken"])
        return MadeReply(number, segments, max_seqlen, image_rows, pictures, pixels, broken)
    if "failed" in told:
        return FailedReply(*told["failed"])
    return ReadyReply()
