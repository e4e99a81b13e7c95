"""What a tokenizer of any library is here: a definition that can be kept, a vocabulary, a backend that encodes."""

from __future__ import annotations

import importlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from megatron_vlm.data import atomic_file
from megatron_vlm.errors import DataError

#: token ids of many texts, uint32 and one after another, and where each text begins: int64[n + 1]
FlatIds: TypeAlias = tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]


class SpecialNames(NamedTuple):
    """The tokens that a run needs: what ends a document, what holds the place of a picture, what fills a batch."""

    eod: str
    image: str
    pad: str


@dataclass(frozen=True)
class Hints:
    """What the files beside a tokenizer say of its special tokens: names, None where nothing is said."""

    eod: str | None = None
    pad: str | None = None


class GigatokenUnusable(Exception):
    """Why gigatoken cannot stand in for a library; one line."""


class Definition(Protocol):
    """All that a tokenizer is, as its files say it. Instances are frozen and picklable."""

    @property
    def form(self) -> str:
        """What it is called in metadata: "tokenizer.json", "sentencepiece" or "tiktoken"."""
        ...

    def identity(self, known: Vocabulary | None = None) -> bytes:
        """What the fingerprint is of: the same for files that mean the same. `known` is its vocabulary, where that was read
        already: it need not be read again then."""
        ...

    def vocabulary(self, origin: str) -> Vocabulary:
        """Read it. Raises DataError, naming `origin`, when it is not of its form."""
        ...

    def write(self, folder: Path) -> Path:
        """Write what `Tokenizer.load` reads into an existing folder; the path of the main file."""
        ...

    def settings(self) -> dict[str, Any]:
        """What tokenizer_settings.json must say beside the main file for it to be read back; may be empty."""
        ...


class Vocabulary(Protocol):
    """A definition that has been read, before the special tokens are chosen."""

    def token_id(self, name: str) -> int | None:
        """Id of the token that is exactly `name`, ordinary words included."""
        ...

    def is_special(self, name: str) -> bool:
        """Whether the tokenizer itself marks `name` as a token that is no text."""
        ...

    def hints(self) -> Hints: ...

    def build(self, names: SpecialNames, origin: str) -> Backend:
        """With `names` as special tokens; those that are missing get the ids after the last, in the order of the fields.

        Raises DataError when text could spell one of them.
        """
        ...


class Backend(Protocol):
    """A tokenizer of one library. Adds nothing around a text, and text never becomes a special token."""

    @property
    def size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids of all special tokens, by name: the chosen ones and the tokenizer's own."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """On all cores."""
        ...

    def encode_flat(self, texts: Sequence[str], parallel: bool) -> FlatIds:
        """On the calling thread alone unless `parallel`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens spelt out."""
        ...

    def open_gigatoken(self, known: Vocabulary | None = None) -> Any:
        """gigatoken's tokenizer of the same ids for text that spells no special token, whatever the text. `known` is the
        vocabulary that this was built from, where someone still has it.

        Raises GigatokenUnusable, or whatever gigatoken raises.
        """
        ...


def flatten(arrays: Sequence[Any]) -> FlatIds:
    """One array or list of ids a text, put one after another."""
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(a) for a in arrays], out=offsets[1:])
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays, dtype=np.uint32, casting="unsafe"), offsets
    flat = array("I")  # it takes lists three times as fast as numpy does
    for ids in arrays:
        flat.fromlist(ids)
    return np.frombuffer(flat, np.uint32) if flat else np.empty(0, np.uint32), offsets


def appended(names: SpecialNames, known: Mapping[str, int], size: int) -> dict[str, int]:
    """Ids of `names`, those not in `known` after the last."""
    ids: dict[str, int] = {}
    for name in names:
        if name in known:
            ids[name] = known[name]
        else:
            ids[name] = size
            size += 1
    return ids


def decode_around(ids: Sequence[int], spelt: Mapping[int, str], decode: Any) -> str:
    """Runs of ids by `decode`, and those in `spelt` as they are spelt there."""
    pieces: list[str] = []
    run: list[int] = []
    for i in ids:
        if i in spelt:
            pieces += [decode(run) if run else "", spelt[i]]
            run = []
        else:
            run.append(i)
    return "".join([*pieces, decode(run) if run else ""])


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file atomically; its path."""
    try:
        atomic_file.partial_path(path).write_bytes(content)
        atomic_file.commit(path)
    except BaseException:
        atomic_file.discard(path)
        raise
    return path


def library(name: str, origin: str) -> Any:
    """Import what reads `origin`. Raises DataError when it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"{origin} needs the library {name}: pip install {name}") from error
