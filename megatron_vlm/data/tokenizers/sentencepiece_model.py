"""SentencePiece's .model files, BPE and unigram, through the library sentencepiece."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vlm.data.tokenizers.backend import (
    FlatIds,
    GigatokenUnusable,
    Hints,
    SpecialNames,
    Vocabulary,
    appended,
    decode_around,
    flatten,
    library,
    write_whole,
)
from megatron_vlm.data.tokenizers.hugging_face import without_special_tokens
from megatron_vlm.errors import DataError

FILE_NAME = "tokenizer.model"

# of sentencepiece_model.proto: fields of ModelProto and SentencePiece, and values of SentencePiece.Type
_PIECES = 1
_PIECE, _TYPE = 1, 3
_CONTROL = 3
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class SentencePieceDefinition:
    """The bytes of a .model file, and names and ids of special tokens that files beside it add to its pieces."""

    content: bytes
    added: tuple[tuple[str, int], ...] = ()

    @property
    def form(self) -> str:
        return "sentencepiece"

    def identity(self, known: Vocabulary | None = None) -> bytes:
        said = [hashlib.sha256(self.content).hexdigest(), sorted(self.added)]
        return b"sentencepiece " + json.dumps(said, separators=(",", ":")).encode()

    def vocabulary(self, origin: str) -> SentencePieceVocabulary:
        return SentencePieceVocabulary(self, origin)

    def write(self, folder: Path) -> Path:
        return write_whole(folder / FILE_NAME, self.content)

    def settings(self) -> dict[str, Any]:
        return {"special_tokens": dict(self.added)} if self.added else {}


class SentencePieceVocabulary:
    """A model that has been read. Raises DataError where it is none."""

    def __init__(self, definition: SentencePieceDefinition, origin: str) -> None:
        self._content = definition.content
        self._processor = _open(definition.content, origin)
        #: those that are pieces of the model are said twice
        self._added = {name: i for name, i in definition.added if self._piece_id(name) != i}
        taken = [*range(self._processor.vocab_size()), *self._added.values()]
        if len(set(taken)) < len(taken):
            raise DataError(f"{origin}: the special tokens given beside it have ids that are taken: {self._added}")

    def token_id(self, name: str) -> int | None:
        return self._added[name] if name in self._added else self._piece_id(name)

    def _piece_id(self, name: str) -> int | None:
        i = int(self._processor.piece_to_id(name))  # the unknown piece's for a name that it lacks
        return i if self._processor.id_to_piece(i) == name else None

    def is_special(self, name: str) -> bool:
        if name in self._added:
            return True
        i = self._piece_id(name)
        return i is not None and bool(self._processor.is_control(i))

    def hints(self) -> Hints:
        def named(i: int) -> str | None:
            return str(self._processor.id_to_piece(i)) if i >= 0 else None  # -1: it has none

        return Hints(named(self._processor.eos_id()), named(self._processor.pad_id()))

    def build(self, names: SpecialNames, origin: str) -> SentencePieceBackend:
        # Only control pieces can be kept from matching in data; some models have "<image>" as a user-defined one.
        loose = {name for name in names if self._piece_id(name) is not None and not self.is_special(name)}
        content = as_control(self._content, loose) if loose else self._content
        return SentencePieceBackend(content, self._added, names, origin)


class SentencePieceBackend:
    """As of `megatron_vlm.data.tokenizers.backend.Backend`."""

    def __init__(self, content: bytes, added: Mapping[str, int], names: SpecialNames, origin: str) -> None:
        self._content = content
        self._processor = processor = _open(content, origin)
        pieces = int(processor.vocab_size())
        control = {str(processor.id_to_piece(i)): i for i in range(pieces) if processor.is_control(i)}
        own = {**control, **added}
        self.special_ids = {**own, **appended(names, own, max([pieces, *(1 + i for i in added.values())]))}
        self.size = max(pieces, 1 + max(self.special_ids.values()))
        self._spelt = {i: name for name, i in self.special_ids.items()}

    def encode(self, text: str) -> list[int]:
        return [int(i) for i in self._processor.encode(text, out_type=int)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self._processor.encode(list(texts), out_type=int))

    def encode_flat(self, texts: Sequence[str], parallel: bool) -> FlatIds:
        if not parallel and hasattr(self._processor, "encode_as_numpy"):
            return flatten([self._processor.encode_as_numpy(text) for text in texts])
        return flatten(self._processor.encode(list(texts), out_type=int, num_threads=-1 if parallel else 1))

    def decode(self, ids: Sequence[int]) -> str:
        return decode_around(ids, self._spelt, self._processor.decode)

    def open_gigatoken(self, known: Vocabulary | None = None) -> Any:
        from gigatoken.gigatoken_rs import load_hf_json

        try:
            from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json
        except ImportError as error:
            raise GigatokenUnusable(f"this gigatoken cannot read SentencePiece models in memory ({error})") from error
        definition = sentencepiece_to_tokenizer_json(self._content)
        unspeakable = {n for n in self.special_ids if self.special_ids[n] < self._processor.vocab_size()}
        unknown = self._processor.id_to_piece(self._processor.unk_id())
        return load_hf_json(without_special_tokens(definition, unspeakable | {unknown}))


def as_control(content: bytes, names: Iterable[str]) -> bytes:
    """The model with the pieces `names` turned into control pieces, which text cannot spell; ids stay."""
    wanted = {name.encode() for name in names}
    out = bytearray()
    for field, wire, start, value, end in _fields(content):
        if field == _PIECES and wire == _DELIMITED:
            piece = content[value:end]
            inside = list(_fields(piece))
            if any(f == _PIECE and piece[v:e] in wanted for f, _, _, v, e in inside):
                kept = b"".join(piece[s:e] for f, _, s, _, e in inside if f != _TYPE)
                changed = kept + _varint(_TYPE << 3 | _VARINT) + _varint(_CONTROL)
                out += _varint(_PIECES << 3 | _DELIMITED) + _varint(len(changed)) + changed
                continue
        out += content[start:end]
    return bytes(out)


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(number, wire type, where it starts, where its value starts, where it ends) of each field of a protobuf message."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        wire, value = key & 7, at
        if wire == _VARINT:
            _, at = _read_varint(message, at)
        elif wire == _DELIMITED:
            length, value = _read_varint(message, at)
            at = value + length
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        yield key >> 3, wire, start, value, at


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _open(content: bytes, origin: str) -> Any:
    sentencepiece = library("sentencepiece", origin)
    processor = sentencepiece.SentencePieceProcessor()
    try:
        if not content:
            raise ValueError("it is empty")
        processor.LoadFromSerializedProto(content)
    except Exception as error:  # RuntimeError with the C++ side's words
        raise DataError(f"{origin} is not a SentencePiece model: {error}") from error
    return processor
