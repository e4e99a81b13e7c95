"""A dataset as training sees it: documents of expanded token ids, with the places of their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.config.picture_rows import PictureRows
from megatron_vlm.data.document_lengths import DocumentLengths, Integers, document_lengths
from megatron_vlm.data.indexed_format import IMAGE_MODE
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_views import IndexedViews, check_sizes
from megatron_vlm.data.sequence_facts import open_sequence_facts
from megatron_vlm.data.source_totals import SourceTotals, count_dataset, source_totals
from megatron_vlm.errors import DataError
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT, Segment
from megatron_vlm.ops.assemble_spans import IndexedSource


@dataclass(frozen=True, slots=True)
class Span:
    """Positions `start .. start + length` of a document: inputs ids[start : start+length], labels one further.

    `pictures` is how many pictures are in them: all of the document's, or none; `rows` are their placeholders, and
    `squares` is the sum of the squares of each one's, on which the cost of encoding them depends.
    """

    source: int
    document: int
    start: int
    length: int
    pictures: int = 0
    rows: int = 0
    squares: int = 0


class DocumentSource:
    """The documents of one indexed dataset, each picture expanded to `image_tokens` placeholders.

    A document of n expanded ids has n - 1 positions: each predicts the id after it. Documents with fewer than 2 ids have
    none and are left out (`short_documents` counts them). A stage may show its pictures in more or fewer tokens: methods
    take the number for which they answer.

    Raises:
        DataError: the dataset was made with another tokenizer, or holds an id outside the vocabulary's range.
    """

    def __init__(
        self,
        name: str,
        reader: IndexedReader,
        tokens: TokenCounts,
        image_tokens: int,
        tokenizer_fingerprint: str | None = None,
    ) -> None:
        self.name, self.reader, self.token_counts, self.image_tokens = name, reader, tokens, image_tokens
        made_with = _tokenizer_of(reader.metadata)
        if tokenizer_fingerprint and made_with and made_with != tokenizer_fingerprint:
            raise DataError(
                f"{reader.prefix} was made with another tokenizer (fingerprint {made_with[:12]}, this run's is "
                f"{tokenizer_fingerprint[:12]}); preprocess it again, or give its tokenizer with --data.tokenizer"
            )
        reader.verify()
        #: what totals are made from; one pass over the index
        self.count = count_dataset(reader)
        self.short_documents = self.count.short
        if not self.count.documents:
            raise DataError(f"{reader.prefix} holds no document of two or more tokens; preprocess something longer")
        self.has_pictures = self.count.pictures > 0
        #: sizes of pictures and what is learnt, int32[N, 2]; None where the dataset does not say
        self.facts = open_sequence_facts(reader.prefix, reader.sequence_count)
        self._views = IndexedViews(reader, self.facts)
        self._totals: dict[int | PictureRows, SourceTotals] = {}

    def lengths(self, documents: Integers, image_tokens: int | PictureRows | None = None) -> DocumentLengths:
        """What planning knows of `documents`, int64[n]. `image_tokens` None: as given when the source was opened.

        Raises DataError where pictures keep their aspect and the dataset does not say how large they are.
        """
        rows = image_tokens or self.image_tokens
        indexed = self.indexed_at(rows)
        if indexed is None:
            check_sizes(self.reader, self.facts, rows)
            return document_lengths(self.reader, documents, rows, self.facts)
        return DocumentLengths(*indexed.document_lengths(documents))

    def totals(self, image_tokens: int | PictureRows | None = None) -> SourceTotals:
        rows = image_tokens or self.image_tokens
        if rows not in self._totals:
            self._totals[rows] = source_totals(self.count, self.reader, self.facts, rows)
        return self._totals[rows]

    def usable_documents(self) -> Integers:
        """The documents that can be trained on, by number, int64; as long as the dataset."""
        return np.flatnonzero(self.lengths(np.arange(self.reader.document_count)).positions >= 1)

    def mean_positions(self, image_tokens: int | PictureRows | None = None) -> float:
        """Positions of a document, on average."""
        totals = self.totals(image_tokens)
        return totals.positions / totals.documents

    def visual_share(self, image_tokens: int | PictureRows | None = None) -> float:
        """Share of this source's positions that are picture placeholders."""
        totals = self.totals(image_tokens)
        return totals.visual / totals.positions

    def ids(
        self, document: int, start: int, count: int, image_tokens: int | PictureRows | None = None
    ) -> tuple[npt.NDArray[np.int32], list[int]]:
        """Expanded ids `[start, start + count)` and the sequences of the pictures that begin in that range.

        Raises:
            DataError: text that holds the image placeholder's id or one outside the vocabulary.
        """
        out = np.full(count, self.token_counts.eod_id, np.int32)
        pictures: list[int] = []
        rows = image_tokens or self.image_tokens
        at = 0  # position of the sequence in the document
        for sequence in self.reader.document_sequences(document):
            picture = self.reader.modes[sequence] == IMAGE_MODE
            length = self._rows(sequence, rows) if picture else int(self.reader.sequence_lengths[sequence])
            begin, end = max(start, at), min(start + count, at + length)
            if begin < end:
                place = slice(begin - start, end - start)
                if picture:
                    out[place] = self.token_counts.image_token_id
                    if start <= at:
                        pictures.append(sequence)
                else:
                    text = self.reader.tokens(sequence, begin - at, end - begin)
                    self._check(text, document)
                    out[place] = text
            at += length
            if at >= start + count:
                break
        return out, pictures

    def segment(
        self, document: int, start: int, positions: int, image_tokens: int | PictureRows | None = None
    ) -> tuple[Segment, list[int]]:
        """Positions of a document to be packed, with what of them is not learnt, and the sequences of its pictures.

        Raises DataError as `ids` does.
        """
        rows = image_tokens or self.image_tokens
        ids, pictures = self.ids(document, start, positions + 1, rows)
        modality = MODALITY_CAPTION if self._shows_pictures(document) else MODALITY_TEXT
        return Segment(ids, modality, masked=self._masked(document, start, positions + 1, rows)), pictures

    def _shows_pictures(self, document: int) -> bool:
        return self.has_pictures and any(
            self.reader.modes[s] == IMAGE_MODE for s in self.reader.document_sequences(document)
        )

    def picture_size(self, sequence: int) -> tuple[int, int]:
        """(height, width) in pixels of the picture in `sequence`; zeros where it is not known."""
        return (0, 0) if self.facts is None else (int(self.facts[sequence, 0]), int(self.facts[sequence, 1]))

    def _rows(self, sequence: int, rows: int | PictureRows) -> int:
        """Placeholders of the picture in `sequence`."""
        return rows if isinstance(rows, int) else rows.of(*self.picture_size(sequence))

    def _masked(self, document: int, start: int, count: int, rows: int | PictureRows) -> tuple[tuple[int, int], ...]:
        """Ranges of the ids `[start, start + count)`, counted from `start`, that are read and not learnt."""
        if self.facts is None:
            return ()
        ranges = []
        at = 0
        for sequence in self.reader.document_sequences(document):
            picture = self.reader.modes[sequence] == IMAGE_MODE
            length = self._rows(sequence, rows) if picture else int(self.reader.sequence_lengths[sequence])
            begin, end = max(start, at), min(start + count, at + length)
            if begin < end and not picture and not self.facts[sequence, 0]:
                ranges.append((begin - start, end - start))
            at += length
        return tuple(ranges)

    def _check(self, text: npt.NDArray[Any], document: int) -> None:
        least, most = int(text.min()), int(text.max())
        if most >= self.token_counts.vocab_size or least < 0:
            raise self.wrong_id(document, least if least < 0 else most)
        if (text == self.token_counts.image_token_id).any():
            raise self.wrong_id(document, self.token_counts.image_token_id)

    def wrong_id(self, document: int, token_id: int) -> DataError:
        """What to raise where a document's text holds an id that it must not hold."""
        where = f"{self.reader.prefix}, document {document}"
        if token_id == self.token_counts.image_token_id:
            return DataError(
                f"{where}: its text holds the image placeholder's id {token_id}; the dataset was made with another tokenizer"
            )
        return DataError(
            f"{where}: token id {token_id} is outside the vocabulary of {self.token_counts.vocab_size}; the dataset was "
            f"made with another tokenizer"
        )

    def indexed_at(self, image_tokens: int | PictureRows) -> IndexedSource | None:
        """The dataset as the native operator reads it with so many placeholders a picture, or None without operators."""
        return self._views.at(image_tokens)


def _tokenizer_of(metadata: dict[str, Any]) -> str | None:
    tokenizer = metadata.get("tokenizer")
    if isinstance(tokenizer, dict):
        return tokenizer.get("fingerprint")
    return metadata.get("tokenizer_fingerprint")
