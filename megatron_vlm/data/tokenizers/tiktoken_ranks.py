"""tiktoken's rank files, through the library tiktoken."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
from megatron_vlm.errors import DataError

FILE_NAME = "tokenizer.tiktoken"

_GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_GPT4 = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"""
    r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
_QWEN = _GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT4O = "|".join(
    [
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    ]
)
#: how text is split before it is merged, by the names that are used for it
PATTERNS = {"gpt2": _GPT2, "r50k": _GPT2, "p50k": _GPT2, "cl100k": _GPT4, "o200k": _GPT4O, "qwen": _QWEN}
_GIGATOKEN_SCHEMES = {_GPT2: "gpt2", _GPT4: "gpt4", _GPT4O: "o200k", _QWEN: "qwen2"}

_FIM = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
_QWEN_NAMES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
#: special tokens of the files that are known by name; they are not in the files
SPECIAL_TOKENS: dict[str, dict[str, int]] = {
    "gpt2": {"<|endoftext|>": 50256},
    "r50k": {"<|endoftext|>": 50256},
    "p50k": {"<|endoftext|>": 50256},
    "cl100k": {"<|endoftext|>": 100257, **_FIM, "<|endofprompt|>": 100276},
    "o200k": {"<|endoftext|>": 199999, "<|endofprompt|>": 200018},
    "qwen": {name: 151643 + i for i, name in enumerate(_QWEN_NAMES)},
}


@dataclass(frozen=True)
class TiktokenDefinition:
    """A rank file, and what such files leave out.

    Attributes:
        content: the file: lines of a token in base64 and its rank.
        pattern: regular expression that splits text before it is merged.
        special_tokens: names and ids.
    """

    content: bytes
    pattern: str
    special_tokens: tuple[tuple[str, int], ...]

    @property
    def form(self) -> str:
        return "tiktoken"

    def identity(self, known: Vocabulary | None = None) -> bytes:
        said = [hashlib.sha256(self.content).hexdigest(), self.pattern, sorted(self.special_tokens)]
        return b"tiktoken " + json.dumps(said, separators=(",", ":")).encode()

    def vocabulary(self, origin: str) -> TiktokenVocabulary:
        return TiktokenVocabulary(self, origin)

    def write(self, folder: Path) -> Path:
        return write_whole(folder / FILE_NAME, self.content)

    def settings(self) -> dict[str, Any]:
        return {"pattern": self.pattern, "special_tokens": dict(self.special_tokens)}


def known_name(file_name: str) -> str | None:
    """The key of PATTERNS that a file's name tells: "cl100k_base.tiktoken" -> "cl100k"."""
    start = file_name.lower().removesuffix(".tiktoken").removesuffix("_base")
    return start if start in PATTERNS else None


def looks_like_ranks(content: bytes) -> bool:
    """Whether the first line is one of a rank file; some are called tokenizer.model, as SentencePiece's are."""
    token, _, rank = content[:4096].partition(b"\n")[0].strip().partition(b" ")
    try:
        return rank.isdigit() and bool(base64.b64decode(token, validate=True))
    except ValueError:
        return False


class TiktokenVocabulary:
    """Ranks that have been read. Raises DataError where a file is none, or lacks one of the 256 bytes."""

    def __init__(self, definition: TiktokenDefinition, origin: str) -> None:
        self._definition = definition
        self._special = dict(definition.special_tokens)
        self._ranks: dict[bytes, int] = {}
        for line, text in enumerate(definition.content.splitlines(), 1):
            if not text.strip():
                continue
            try:
                token, rank = text.split()
                self._ranks[base64.b64decode(token, validate=True)] = int(rank)
            except ValueError as error:
                raise DataError(f"{origin}, line {line}: not a tiktoken rank file: {error}") from error
        taken = {*self._ranks.values(), *self._special.values()}
        if len(taken) < len(self._ranks) + len(self._special):
            raise DataError(f"{origin}: two tokens have the same id; give the special tokens that belong to this file")
        if any(bytes([byte]) not in self._ranks for byte in range(256)):
            raise DataError(f"{origin}: not a tiktoken rank file: it lacks some of the 256 single bytes")

    def token_id(self, name: str) -> int | None:
        return self._special.get(name)  # ordinary tokens are bytes, and never taken for a special token

    def is_special(self, name: str) -> bool:
        return name in self._special

    def hints(self) -> Hints:
        return Hints()

    def build(self, names: SpecialNames, origin: str) -> TiktokenBackend:
        return TiktokenBackend(self._definition, self._ranks, names, origin)


class TiktokenBackend:
    """As of `megatron_vlm.data.tokenizers.backend.Backend`."""

    def __init__(self, definition: TiktokenDefinition, ranks: dict[bytes, int], names: SpecialNames, origin: str) -> None:
        tiktoken = library("tiktoken", origin)
        own = dict(definition.special_tokens)
        size = 1 + max([*ranks.values(), *own.values()])
        self.special_ids = {**own, **appended(names, own, size)}
        self.size = max(size, 1 + max(self.special_ids.values()))
        self._spelt = {i: name for name, i in self.special_ids.items()}
        self._definition = definition
        try:
            # without its special tokens: they are ours to spell out, and text must not match them
            self._encoding = tiktoken.Encoding("ranks", pat_str=definition.pattern, mergeable_ranks=ranks, special_tokens={})
        except ValueError as error:
            raise DataError(f"{origin}: its pattern is no regular expression that tiktoken takes: {error}") from error

    def encode(self, text: str) -> list[int]:
        return [int(i) for i in self._encoding.encode_ordinary(text)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self._encoding.encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1))

    def encode_flat(self, texts: Sequence[str], parallel: bool) -> FlatIds:
        def one(text: str) -> Any:
            return self._encoding.encode_to_numpy(text, disallowed_special=())

        if parallel:  # it releases Python's lock
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                return flatten(list(pool.map(one, texts)))
        return flatten([one(text) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        return decode_around(ids, self._spelt, self._encoding.decode)

    def open_gigatoken(self, known: Vocabulary | None = None) -> Any:
        from gigatoken.gigatoken_rs import BPETokenizer

        scheme = _GIGATOKEN_SCHEMES.get(self._definition.pattern)
        if scheme is None:
            raise GigatokenUnusable("it does not know the pattern that this tokenizer splits text by")
        with tempfile.TemporaryDirectory() as folder:  # it only reads files
            path = self._definition.write(Path(folder))
            return BPETokenizer.from_tiktoken(path, scheme, {})
