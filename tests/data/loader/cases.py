"""Small datasets with pictures, the steps of a run over them, and what each step's micro-batches are by other means."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.pictures import PicturesConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.documents import DocumentSource, Span
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.loader.messages import MakerSpec
from megatron_vlm.data.loader.opening import maker_spec
from megatron_vlm.data.micro_batch import MicroBatch
from megatron_vlm.data.pictures import decode_picture
from megatron_vlm.data.step_plan import MixtureReport, StepPlan
from megatron_vlm.ops.assemble import assemble_packs_reference

TOKENS = TokenCounts(vocab_size=1000, eod_id=0, image_token_id=1, pad_id=2)
#: two stages: the second has longer packs, larger pictures of more tokens, and other batches
EARLY = StepShape(0, 32, 2, 4, 8, 1, 3)
LATE = StepShape(1, 48, 3, 6, 12, 1, 5)
PICTURED, TEXTS = 40, 30


def photograph(rng: np.random.Generator, side: int = 24) -> bytes:
    """A JPEG of noise over a gradient."""
    ramp = np.linspace(0, 200, side)[:, None, None] + rng.integers(0, 50, (side, side, 3))
    stream = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(stream, "JPEG", quality=80)
    return stream.getvalue()


@dataclass(frozen=True)
class Case:
    sources: dict[str, DocumentSource]
    plans: list[StepPlan]

    def spec(self, decode_pictures: bool = True) -> MakerSpec:
        return maker_spec(self.sources, TOKENS, decode_pictures, PicturesConfig())

    @property
    def shapes(self) -> list[StepShape]:
        return [plan.shape for plan in self.plans]


def make_case(
    folder: Path,
    steps: int = 8,
    broken: Sequence[int] = (),
    wrong_text: int | None = None,
    first_picture: bytes | None = None,
) -> Case:
    """A dataset of texts (30 ids each) and one of captioned pictures: a picture, 4 ids, and another picture in every third.

    `broken` pictured documents hold pictures that are none; `wrong_text` holds an id outside the vocabulary.
    """
    rng = np.random.default_rng(0)
    with IndexedWriter(folder / "text", np.uint16) as writer:
        for number in range(TEXTS):
            ids = rng.integers(10, 1000, 29).tolist()
            writer.add_text([*([5000] if number == wrong_text else ids[:1]), *ids[1:], TOKENS.eod_id])
            writer.end_document()
    with IndexedWriter(folder / "captions", np.int32, multimodal=True) as writer:
        for number in range(PICTURED):
            for _ in range(2 if number % 3 == 0 else 1):
                made = photograph(rng)
                given = first_picture if number == 0 else None
                writer.add_image(b"no picture" if number in broken else given or made)
                writer.add_text(rng.integers(10, 1000, 4).tolist())
            writer.end_document()
    sources = {n: DocumentSource(n, IndexedReader(folder / n), TOKENS, 3) for n in ("text", "captions")}
    return Case(sources, list(_plans(steps)))


def _plans(steps: int) -> Iterator[StepPlan]:
    text = picture = 0
    for step in range(steps):
        shape = EARLY if step < steps // 2 else LATE
        packs = []
        for _ in range(shape.global_batch_size):
            spans, room = [], shape.sequence_length
            while True:
                shown = 2 if picture % 3 == 0 else 1
                length = shown * (shape.image_tokens + 4) - 1
                if length > room - 6:
                    break
                spans.append(Span(1, picture, 0, length))
                picture, room = (picture + 1) % PICTURED, room - length
            spans.append(Span(0, text, step % 3, 6))
            text = (text + 1) % TEXTS
            packs.append(tuple(spans))
        yield StepPlan(step, shape, tuple(packs), {"after": step}, MixtureReport())


def everything(plan: StepPlan) -> list[int]:
    """The share of the only rank."""
    return list(range(len(plan.packs)))


def expected(case: Case, plan: StepPlan) -> list[dict[str, np.ndarray]]:
    """A step's micro-batches by the numpy reference and one call of Pillow a picture."""
    found, shape, sources = [], plan.shape, list(case.sources.values())
    for first in range(0, len(plan.packs), shape.micro_batch_size):
        segments, pixels = [], []
        for pack in plan.packs[first : first + shape.micro_batch_size]:
            segments.append([])
            for span in pack:
                source = sources[span.source]
                segment, sequences = source.segment(span.document, span.start, span.length, shape.image_tokens)
                segments[-1].append(segment)
                pixels += [decode_picture(source.reader.image_bytes(s), shape.image_size, "") for s in sequences]
        batch = assemble_packs_reference(segments, sequence_length=shape.sequence_length, image_token_id=1, pad_id=2)
        arrays = {name: getattr(batch, name) for name in ("tokens", "labels", "loss_mask", "position_ids", "row_index")}
        found.append({**arrays, "cu_seqlens": batch.cu_seqlens, "pixels": np.stack(pixels)})
    return found


def assert_is(batches: list[MicroBatch], wanted: list[dict[str, np.ndarray]]) -> None:
    assert len(batches) == len(wanted)
    for batch, arrays in zip(batches, wanted, strict=True):
        for name, array in arrays.items():
            value = getattr(batch, name)
            found = value if name in ("cu_seqlens", "pixels") else value[0]
            assert torch.equal(found, torch.from_numpy(array)), name
