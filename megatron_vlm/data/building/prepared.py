"""Records of a unit into sequences: tokenised, checked, filtered, and laid out as the .bin holds them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from megatron_vlm.data.building.options import BuildOptions, Duplicates
from megatron_vlm.data.encoded_pictures.filters import CaptionFilter, PictureFilter
from megatron_vlm.data.encoded_pictures.picture_hash import difference_hash, sha256_key
from megatron_vlm.data.encoded_pictures.picture_header import PictureHeader, read_header
from megatron_vlm.data.encoded_pictures.unusable import Defect
from megatron_vlm.data.indexed_format import IMAGE_MODE, TEXT_MODE
from megatron_vlm.data.picture_check import check_picture
from megatron_vlm.data.quarantine import FILTERED, Reason, Rejection
from megatron_vlm.data.records import Picture, Record, Text
from megatron_vlm.data.tokenizer import Tokenizer

KEY_BYTES = 16
NO_KEY = bytes(KEY_BYTES)


@dataclass(slots=True)
class PreparedBatch:
    """The documents of some records, in order.

    Attributes:
        pieces: buffers that make up the .bin, one after another.
        lengths: elements of each sequence; modes and facts as `megatron_vlm.data.indexed_writer` takes them.
        sequences: of each document; parts: which part of the split it belongs to; records: the record's number in its unit;
            keys: what the picture of a record is compared by, NO_KEY where it is not.
        rejections: what cannot be used, and filtered: how many sound records were left out, by reason.
    """

    pieces: list[bytes | memoryview] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    modes: list[int] = field(default_factory=list)
    facts: list[tuple[int, int]] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    filtered: Counter[Reason] = field(default_factory=Counter)
    tokens: int = 0


@dataclass(slots=True)
class _Checked:
    """A record whose pictures are sound: its documents with runs of text joined, and each picture as it will be stored."""

    record: Record
    documents: list[list[Text | _Stored]]
    key: bytes


@dataclass(slots=True)  # made for each picture, and not frozen, which takes twice as long
class _Stored:
    encoded: bytes
    height: int
    width: int


class Preparer:
    """Prepares batches of records; made once in each process, as it holds the tokenizer.

    `url` names the file in rejections. With `options.duplicates`, keys are made and compared later, over all units.
    """

    def __init__(self, tokenizer: Tokenizer, options: BuildOptions, dtype: np.dtype[np.integer]) -> None:
        self.tokenizer, self.options, self.dtype = tokenizer, options, dtype
        self.eod = dtype.type(tokenizer.eod_id).tobytes()
        self._special: dict[str, int] = {}
        #: what stands before and after a picture, by how many bytes the last element lacks
        self._paddings = [(dtype.type(lacking).tobytes(), bytes(lacking)) for lacking in range(dtype.itemsize)]
        self._all_pictures = options.pictures == PictureFilter()
        self._all_captions = options.captions == CaptionFilter()

    def prepare(self, url: str, records: Sequence[Record | Rejection], parallel: bool) -> PreparedBatch:
        plain = self._plain_texts(records)
        if plain is not None and (batch := self._prepare_plain(plain, records, parallel)) is not None:
            return batch
        if self._are_pairs(records) and (batch := self._prepare_pairs(url, records, parallel)) is not None:
            return batch
        batch = PreparedBatch()
        checked: list[_Checked] = []
        for record in records:
            if isinstance(record, Rejection):
                batch.rejections.append(record)
                continue
            outcome = self._check(record)
            if isinstance(outcome, _Checked):
                checked.append(outcome)
            elif outcome[0] in FILTERED:
                batch.filtered[outcome[0]] += 1
            else:
                batch.rejections.append(_rejection(url, record, *outcome))
        self._encode(url, checked, batch, parallel)
        batch.rejections.sort(key=lambda rejection: rejection.number)
        return batch

    def _plain_texts(self, records: Sequence[Record | Rejection]) -> list[str] | None:
        """The text of each record where each is one document of one text, as of most sources of text; else None."""
        if self.options.split is not None or self.options.max_tokens is not None:
            return None
        texts = []
        for record in records:
            if isinstance(record, Rejection) or len(record.documents) != 1 or len(record.documents[0]) != 1:
                return None
            part = record.documents[0][0]
            if not isinstance(part, Text) or part.special or not part.learnt:
                return None
            texts.append(part.text)
        return texts

    def _prepare_plain(
        self, texts: Sequence[str], records: Sequence[Record | Rejection], parallel: bool
    ) -> PreparedBatch | None:
        """What the general way gives, all documents at once; None where a text has no token."""
        ids, offsets = self.tokenizer.encode_flat(texts, parallel=parallel)
        lengths = np.diff(offsets)
        if not lengths.all():
            return None
        count = len(texts)
        ending = int(self.options.append_eod)
        flat = np.full(len(ids) + ending * count, self.tokenizer.eod_id, self.dtype)
        lengths = lengths + ending
        begin = at = 0
        for end in offsets[1:].tolist():
            flat[at : at + end - begin] = ids[begin:end]
            at += end - begin + ending
            begin = end
        return PreparedBatch(
            pieces=[flat.data.cast("B")],
            lengths=lengths.tolist(),
            modes=[TEXT_MODE] * count,
            facts=[(1, 0)] * count,
            sequences=[1] * count,
            parts=[0] * count,
            records=[record.number for record in records],
            keys=[NO_KEY] * count,
            tokens=len(flat),
        )

    def _are_pairs(self, records: Sequence[Record | Rejection]) -> bool:
        """Whether all are one document of a picture and its caption each, as of most sources of captioned pictures."""
        if self.options.max_tokens is not None:
            return False
        for record in records:
            if isinstance(record, Rejection):
                continue
            if len(record.documents) != 1 or len(record.documents[0]) != 2:
                return False
            picture, caption = record.documents[0]
            if not (isinstance(picture, Picture) and isinstance(caption, Text)) or caption.special or not caption.learnt:
                return False
        return True

    def _prepare_pairs(self, url: str, records: Sequence[Record | Rejection], parallel: bool) -> PreparedBatch | None:
        """What the general way gives for `_are_pairs`, in a third of the time; None where a caption has no token."""
        batch = PreparedBatch()
        texts: list[str] = []
        kept: list[_Stored] = []
        store, refusal = self._store, None if self._all_captions else self.options.captions.refusal
        split = self.options.split
        for record in records:
            if isinstance(record, Rejection):
                batch.rejections.append(record)
                continue
            picture, caption = record.documents[0]
            outcome = store(picture.encoded)  # type: ignore[union-attr]
            text: str = caption.text  # type: ignore[union-attr]
            if isinstance(outcome, _Stored):
                defect = None if refusal is None else refusal(text)
                if defect is None:
                    texts.append(text)
                    kept.append(outcome)
                    batch.records.append(record.number)
                    continue
            else:
                defect = outcome
            if defect[0] in FILTERED:
                batch.filtered[defect[0]] += 1
            else:
                batch.rejections.append(_rejection(url, record, *defect))
        batch.rejections.sort(key=lambda rejection: rejection.number)
        ids, offsets = self.tokenizer.encode_flat(texts, parallel=parallel)
        tokens = np.diff(offsets)
        if not tokens.all():
            return None
        itemsize, paddings = self.dtype.itemsize, self._paddings
        flat = np.ascontiguousarray(ids, dtype=self.dtype).data.cast("B")
        ending = self.eod if self.options.append_eod else b""
        borders = (offsets * itemsize).tolist()
        for stored, begin, end in zip(kept, borders, borders[1:], strict=False):
            encoded = stored.encoded
            before, after = paddings[-len(encoded) % itemsize]
            batch.pieces += (before, encoded, after, flat[begin:end], ending)
            batch.lengths += ((len(encoded) + len(after)) // itemsize + 1, (end - begin + len(ending)) // itemsize)
            batch.facts += ((stored.height, stored.width), (1, 0))
        batch.modes = [IMAGE_MODE, TEXT_MODE] * len(kept)
        batch.sequences = [2] * len(kept)
        batch.parts = [split.part(stored.encoded) for stored in kept] if split else [0] * len(kept)
        batch.keys = [self._key([stored]) for stored in kept]
        batch.tokens = len(ids) + len(kept) * len(ending) // itemsize
        return batch

    def _check(self, record: Record) -> _Checked | Defect:
        """Pictures are looked at once each, also where several documents of a record share one."""
        stored: dict[int, _Stored] = {}
        documents: list[list[Text | _Stored]] = []
        for document in record.documents:
            pictured = any(isinstance(part, Picture) for part in document)
            texts: list[str] = []
            parts: list[Text | _Stored] = []
            for part in document:
                if isinstance(part, Picture):
                    known = stored.get(id(part))
                    if known is None:
                        outcome = self._store(part.encoded)
                        if not isinstance(outcome, _Stored):
                            return outcome
                        known = stored[id(part)] = outcome
                    parts.append(known)
                    continue
                _add_text(parts, part)
                if not part.special:
                    texts.append(part.text)
            if pictured and (refusal := self.options.captions.refusal("".join(texts))) is not None:
                return refusal
            documents.append(parts)
        return _Checked(record, documents, self._key(list(stored.values())))

    def _store(self, encoded: bytes) -> _Stored | Defect:
        options = self.options
        header = check_picture(encoded, thorough=options.thorough, max_pixels=options.max_pixels)
        if not isinstance(header, PictureHeader):
            return header
        if not self._all_pictures and (refusal := options.pictures.refusal(header)) is not None:
            return refusal
        if options.reencode is not None:
            try:
                encoded = options.reencode.apply(encoded)
            except Exception as error:  # decoders raise whatever they like on damaged input
                return Reason.UNDECODABLE_IMAGE, f"it cannot be encoded anew: {type(error).__name__}: {error}"
            known = read_header(encoded)
            if known is None:
                return Reason.UNDECODABLE_IMAGE, "encoded anew, it has no header"
            header = known
        return _Stored(encoded, *header.shown_size)

    def _key(self, pictures: Sequence[_Stored]) -> bytes:
        if self.options.duplicates is Duplicates.KEEP or len(pictures) != 1:
            return NO_KEY
        if self.options.duplicates is Duplicates.SAME_BYTES:
            return sha256_key(pictures[0].encoded)
        try:
            return difference_hash(pictures[0].encoded).to_bytes(8, "little") + b"dhash\0\0\0"
        except Exception:  # a picture that only looked sound is no duplicate of anything; training replaces it
            return NO_KEY

    def _encode(self, url: str, checked: Sequence[_Checked], batch: PreparedBatch, parallel: bool) -> None:
        texts = [
            part.text
            for item in checked
            for document in item.documents
            for part in document
            if isinstance(part, Text) and not part.special
        ]
        ids, offsets = self.tokenizer.encode_flat(texts, parallel=parallel)
        flat = np.ascontiguousarray(ids, dtype=self.dtype).data.cast("B")
        borders = itertools.pairwise((offsets * self.dtype.itemsize).tolist())
        for item in checked:
            self._lay_out(url, item, flat, borders, batch)

    def _lay_out(
        self, url: str, item: _Checked, flat: memoryview, borders: Iterator[tuple[int, int]], batch: PreparedBatch
    ) -> None:
        """Append a record's documents; all of them or, where one is no document, none."""
        made: list[tuple[list[_Sequence], bytes]] = []
        defect: Defect | None = None
        for document in item.documents:
            sequences: list[_Sequence] = []
            ended = False
            for part in document:
                if isinstance(part, _Stored):
                    sequences.append(_Sequence(IMAGE_MODE, (part.height, part.width), self._picture(part.encoded)))
                    continue
                if part.special:
                    data: bytes | memoryview = self._special_token(part.text)
                else:
                    data = flat[slice(*next(borders))]
                ended = part.special and part.learnt and data == self.eod
                if len(data):
                    _extend(sequences, (int(part.learnt), 0), [data])
            text_bytes = sum(s.size for s in sequences if s.mode == TEXT_MODE)
            if not text_bytes:
                defect = defect or (Reason.EMPTY_TEXT, "the tokenizer makes no token of it")
            tokens = text_bytes // self.dtype.itemsize
            limit = self.options.max_tokens
            if limit is not None and tokens > limit:
                defect = defect or (Reason.TOO_MANY_TOKENS, f"{tokens} tokens, and the limit is {limit}")
            if self.options.append_eod and not ended:  # a template's end of an answer may be that token
                _extend(sequences, (1, 0), [self.eod])
            made.append((sequences, self._content(document)))
        if defect is not None:
            batch.rejections.append(_rejection(url, item.record, *defect))
            return
        split = self.options.split
        for sequences, content in made:
            for sequence in sequences:
                batch.pieces += sequence.pieces
                batch.lengths.append(sequence.size // self.dtype.itemsize)
                batch.modes.append(sequence.mode)
                batch.facts.append(sequence.facts)
                if sequence.mode == TEXT_MODE:
                    batch.tokens += batch.lengths[-1]
            batch.sequences.append(len(sequences))
            batch.parts.append(split.part(content) if split else 0)
            batch.records.append(item.record.number)
            batch.keys.append(item.key)

    def _content(self, document: Sequence[Text | _Stored]) -> bytes:
        """What a split goes by: the first picture, else the text."""
        if self.options.split is None:
            return b""
        for part in document:
            if isinstance(part, _Stored):
                return part.encoded
        return "".join(part.text for part in document if isinstance(part, Text)).encode()

    def _picture(self, encoded: bytes) -> list[bytes | memoryview]:
        before, after = self._paddings[-len(encoded) % self.dtype.itemsize]
        return [before, encoded, after]

    def _special_token(self, name: str) -> bytes:
        token = self._special.get(name)
        if token is None:
            token = self._special[name] = self.tokenizer.special_id(name)
        return self.dtype.type(token).tobytes()


@dataclass(slots=True)
class _Sequence:
    mode: int
    facts: tuple[int, int]
    pieces: list[bytes | memoryview]
    size: int = 0

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.pieces))


def _extend(sequences: list[_Sequence], facts: tuple[int, int], pieces: list[bytes | memoryview]) -> None:
    """More text: into the last sequence where that is text of the same kind, else as a new one."""
    last = sequences[-1] if sequences else None
    if last is not None and last.mode == TEXT_MODE and last.facts == facts:
        last.pieces += pieces
        last.size += sum(map(len, pieces))
    else:
        sequences.append(_Sequence(TEXT_MODE, facts, pieces))


def _add_text(parts: list[Text | _Stored], part: Text) -> None:
    """Append, joining it to a text of the same kind: what a tokenizer sees must not depend on how a reader cut it."""
    last = parts[-1] if parts else None
    if isinstance(last, Text) and not (last.special or part.special) and last.learnt == part.learnt:
        parts[-1] = Text(last.text + part.text, part.learnt)
    else:
        parts.append(part)


def _rejection(url: str, record: Record, reason: Reason, detail: str) -> Rejection:
    return Rejection(url, record.key, reason, detail, record.offset, record.number, record.bytes_read)


def as_columns(batch: PreparedBatch) -> dict[str, npt.NDArray[np.generic]]:
    """The columns of a batch as arrays, by name."""
    return {
        "lengths": np.array(batch.lengths, "<i4"),
        "modes": np.array(batch.modes, "i1"),
        "facts": np.array(batch.facts, "<i4").reshape(-1, 2),
        "sequences": np.array(batch.sequences, "<i4"),
        "parts": np.array(batch.parts, "u1"),
        "records": np.array(batch.records, "<i8"),
        "keys": np.frombuffer(b"".join(batch.keys), f"V{KEY_BYTES}"),
    }
