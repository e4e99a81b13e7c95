"""A dataset as training sees it: documents of expanded token ids, with the places of their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_vlm.config.data import TokenCounts
from megatron_vlm.data.indexed_format import IMAGE_MODE
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.sequence_facts import open_sequence_facts
from megatron_vlm.errors import DataError
from megatron_vlm.ops.assemble import MODALITY_CAPTION, MODALITY_TEXT, Segment
from megatron_vlm.ops.assemble_spans import IndexedSource
from megatron_vlm.ops.native import native_operators


@dataclass(frozen=True, slots=True)
class Span:
    """Positions `start .. start + length` of a document: inputs ids[start : start+length], labels one further."""

    source: int
    document: int
    start: int
    length: int


class DocumentSource:
    """The documents of one indexed dataset, each picture expanded to `image_tokens` placeholders.

    A document of n expanded ids has n - 1 positions: each predicts the id after it. Documents with fewer than 2 ids have
    none and are left out (`short_documents` counts them).

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
        pictures = reader.document_images()
        lengths = reader.document_text_tokens() + pictures * image_tokens
        # a picture at the very end gets an end-of-document after it: each of its rows is then an input position
        lengths = lengths + _ends_with_picture(reader)
        usable = lengths >= 2
        self.short_documents = int((~usable).sum())
        #: documents that can be trained on, by their number in the dataset
        self.documents: npt.NDArray[np.int64] = np.flatnonzero(usable)
        if not len(self.documents):
            raise DataError(f"{reader.prefix} holds no document of two or more tokens; preprocess something longer")
        self.positions: npt.NDArray[np.int64] = lengths - 1
        self.pictures: npt.NDArray[np.int64] = pictures
        self.has_pictures = bool(pictures.any())
        #: sizes of pictures and what is learnt, int32[N, 2]; None where the dataset does not say
        self.facts = open_sequence_facts(reader.prefix, reader.sequence_count)
        self._indexed: dict[int, IndexedSource] = {}

    @cached_property
    def mean_positions(self) -> float:
        """Positions of a document, on average."""
        return float(self.positions[self.documents].mean())

    @cached_property
    def visual_share(self) -> float:
        """Share of this source's positions that are picture placeholders."""
        return float(self.pictures[self.documents].sum() * self.image_tokens / self.positions[self.documents].sum())

    def first_ids_needed(self, document: int) -> int:
        """Positions that must stay together from the start: up to and with the last picture; 0 without pictures."""
        if not self.pictures[document]:
            return 0
        end = total = 0
        for sequence in self.reader.document_sequences(document):
            picture = self.reader.modes[sequence] == IMAGE_MODE
            total += self.image_tokens if picture else int(self.reader.sequence_lengths[sequence])
            end = total if picture else end
        return end

    def ids(
        self, document: int, start: int, count: int, image_tokens: int | None = None
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
            length = rows if picture else int(self.reader.sequence_lengths[sequence])
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
        self, document: int, start: int, positions: int, image_tokens: int | None = None
    ) -> tuple[Segment, list[int]]:
        """Positions of a document to be packed, with what of them is not learnt, and the sequences of its pictures.

        Raises DataError as `ids` does.
        """
        rows = image_tokens or self.image_tokens
        ids, pictures = self.ids(document, start, positions + 1, rows)
        modality = MODALITY_CAPTION if self.pictures[document] else MODALITY_TEXT
        return Segment(ids, modality, masked=self._masked(document, start, positions + 1, rows)), pictures

    def _masked(self, document: int, start: int, count: int, rows: int) -> tuple[tuple[int, int], ...]:
        """Ranges of the ids `[start, start + count)`, counted from `start`, that are read and not learnt."""
        if self.facts is None:
            return ()
        ranges = []
        at = 0
        for sequence in self.reader.document_sequences(document):
            picture = self.reader.modes[sequence] == IMAGE_MODE
            length = rows if picture else int(self.reader.sequence_lengths[sequence])
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

    def indexed_at(self, image_tokens: int) -> IndexedSource | None:
        """The dataset as the native operator reads it with so many placeholders a picture, or None without operators."""
        native = native_operators()
        if native is None:
            return None
        if image_tokens not in self._indexed:
            reader = self.reader
            index = (reader.sequence_lengths, reader.sequence_pointers, reader.document_indices, reader.modes)
            self._indexed[image_tokens] = IndexedSource(native, reader.data, reader.dtype, *index, image_tokens, self.facts)
        return self._indexed[image_tokens]


def _ends_with_picture(reader: IndexedReader) -> npt.NDArray[np.int64]:
    first, after = reader.document_indices[:-1], reader.document_indices[1:]
    if not reader.sequence_count:
        return np.zeros(len(first), np.int64)
    last = np.maximum(after - 1, 0)
    return ((after > first) & (reader.modes[last] == IMAGE_MODE)).astype(np.int64)


def _tokenizer_of(metadata: dict[str, Any]) -> str | None:
    tokenizer = metadata.get("tokenizer")
    if isinstance(tokenizer, dict):
        return tokenizer.get("fingerprint")
    return metadata.get("tokenizer_fingerprint")
