"""A dataset as a worker reads it: opened without a look at any document."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_views import IndexedViews
from megatron_vlm.data.sequence_facts import open_sequence_facts
from megatron_vlm.errors import DataError
from megatron_vlm.ops.assemble import Segment
from megatron_vlm.ops.assemble_spans import IndexedSource


@dataclass(frozen=True, slots=True)
class SourcePlace:
    """Where a source is: its name in the run, the prefix of its dataset, and that of its pictures' features if any."""

    name: str
    prefix: str
    features: str = ""


class SpanReader:
    """The spans of one dataset: see `SpanSource`.

    Planning needs the length of every document, reading a span needs none. So a worker opens a dataset of ten million
    documents as fast as one of ten.
    """

    def __init__(self, place: SourcePlace, tokens: TokenCounts) -> None:
        """Raises DataError where the dataset is gone or damaged."""
        self.place, self.token_counts = place, tokens
        self.reader = IndexedReader(Path(place.prefix))
        self._facts = open_sequence_facts(self.reader.prefix, self.reader.sequence_count)
        self._views = IndexedViews(self.reader, self._facts)

    def picture_size(self, sequence: int) -> tuple[int, int]:
        """(height, width) in pixels of the picture in `sequence`; zeros where it is not known."""
        return (0, 0) if self._facts is None else (int(self._facts[sequence, 0]), int(self._facts[sequence, 1]))

    def indexed_at(self, image_tokens: int | PictureRows) -> IndexedSource | None:
        return self._views.at(image_tokens)

    @cached_property
    def _documents(self) -> DocumentSource:
        """What only a machine without native operators needs, and the words of an error."""
        return DocumentSource(self.place.name, self.reader, self.token_counts, 1)

    def segment(
        self, document: int, start: int, positions: int, image_tokens: int | PictureRows | None = None
    ) -> tuple[Segment, list[int]]:
        return self._documents.segment(document, start, positions, image_tokens)

    def wrong_id(self, document: int, token_id: int) -> DataError:
        return self._documents.wrong_id(document, token_id)
