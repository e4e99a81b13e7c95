"""Held-out loss by source and modality, measured during the run."""

from __future__ import annotations

import numpy as np

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.run import RunConfig
from megatron_vlm.config.steps import StepShape
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.order import epoch_order
from megatron_vlm.data.pictures import decode_picture
from megatron_vlm.parallel.topology import Topology
from megatron_vlm.training.engine import Engine
from megatron_vlm.training.scoring import Scored, score_documents


def trained_shape(config: RunConfig, step: int) -> StepShape:
    """The shape in which a model of `step` steps is measured: that of the last of them, or of the first to come."""
    return config.shape_of(max(0, step - 1))


def held_out_documents(source: DocumentSource, shape: StepShape, limit: int, pictures: bool) -> list[Scored]:
    """Up to `limit` (0: all) documents, the same ones each time; texts longer than a pack as pieces of one.

    Documents whose pictures do not fit a pack are left out. `pictures` says whether this rank decodes them.
    """
    if source.image_tokens != shape.image_tokens:
        source = DocumentSource(source.name, source.reader, source.token_counts, shape.image_tokens)
    order = epoch_order(source.documents, 0, source.name, 0)
    capacity = shape.sequence_length
    scored: list[Scored] = []
    for document in order[: limit or None]:
        document = int(document)
        whole = int(source.positions[document])
        if source.pictures[document] and source.first_ids_needed(document) > capacity:
            continue
        for start in range(0, 1 if source.pictures[document] else whole, capacity):
            segment, sequences = source.segment(document, start, min(capacity, whole - start))
            where = f"{source.reader.prefix}, document {document}"
            size = shape.image_size
            found = tuple(decode_picture(source.reader.image_bytes(s), size, where) for s in sequences if pictures)
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
        limit, pictures = self.config.data.validation_documents, self.topology.on_first_stage
        return {name: held_out_documents(source, shape, limit, pictures) for name, source in self.sources.items()}

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


def _sizes(shape: StepShape) -> tuple[int, int, int]:
    """What of a shape documents are made for."""
    return shape.sequence_length, shape.image_size, shape.image_tokens
