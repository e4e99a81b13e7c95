"""Held-out loss by source and modality, measured during the run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.decoding.decoder import open_decoder
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.order import epoch_order
from megatron_vlm.data.pictures import decode_picture, picture_canvas
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.training.engine import Engine
from megatron_vlm.training.scoring import Scored, needs_pictures, score_documents


def trained_shape(config: RunConfig, step: int) -> StepShape:
    """The shape in which a model of `step` steps is measured: that of the last of them, or of the first to come."""
    if not config.segments:
        # weights that were imported for no run in particular: how long one is does not matter to its first step
        config = replace(config, schedule=replace(config.schedule, train_steps=1, train_tokens=None, train_epochs={}))
    return config.shape_of(max(0, step - 1))


def held_out_documents(
    source: DocumentSource, config: RunConfig, shape: StepShape, limit: int, pictures: bool
) -> list[Scored]:
    """Up to `limit` (0: all) documents, the same ones each time; texts longer than a pack as pieces of one.

    `shape` says how long a pack is and how pictures are shown, `pictures` whether this rank decodes them.
    """
    order = epoch_order(source.usable_documents(), 0, source.name, 0)[: limit or None]
    known = source.lengths(order, shape.picture)
    capacity = shape.sequence_length
    scored: list[Scored] = []
    decoder = open_decoder(config.data.pictures, config.model.vision.pixel_mean) if pictures else None
    for document, whole, shown, end in zip(
        *(column.tolist() for column in (order, known.positions, known.pictures, known.picture_end)), strict=True
    ):
        if end > capacity:
            continue
        for start in range(0, 1 if shown else whole, capacity):
            segment, sequences = source.segment(document, start, min(capacity, whole - start), shape.picture)
            where = f"{source.reader.prefix}, document {document}"
            encoded = [source.reader.image_bytes(sequence) for sequence in sequences if pictures]
            found = tuple(decode_picture(data, picture_canvas(data, shape), where, decoder) for data in encoded)
            scored.append(Scored(segment, found))
    return scored


class Validation:
    """The validation sources, read once for each shape that they are scored in, and scored when asked.

    Losses of shapes are comparable as far as their documents are: longer packs cut fewer texts and give more context.
    """

    def __init__(
        self, config: RunConfig, topology: Topology, tokens: TokenCounts, sources: dict[str, DocumentSource]
    ) -> None:
        self.config, self.topology, self.tokens, self.sources = config, topology, tokens, sources
        self.documents = self._read(trained_shape(config, 0))

    def _read(self, shape: StepShape) -> dict[str, list[Scored]]:
        self._read_for = _sizes(shape)
        limit, decodes = self.config.data.validation_documents, needs_pictures(shape, self.topology)
        return {n: held_out_documents(s, self.config, shape, limit, decodes) for n, s in self.sources.items()}

    def measure(self, engine: Engine, shape: StepShape) -> dict[str, float]:
        """Source -> mean loss of its held-out tokens, in nats; sources of which no document fits `shape` are left out."""
        if _sizes(shape) != self._read_for:
            self.documents = self._read(shape)
        losses = {}
        for name, documents in self.documents.items():
            if documents:
                scores = score_documents(engine, shape, self.topology, self.tokens, documents)
                losses[name] = float(scores[:, 0].sum() / max(1.0, np.sum(scores[:, 1])))
        return losses


def _sizes(shape: StepShape) -> tuple[int, int, PictureRows]:
    """What of a shape documents are made for."""
    return shape.sequence_length, shape.image_size, shape.picture
