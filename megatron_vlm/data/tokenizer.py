"""The tokenizer: any of the field's forms, with three special tokens that data cannot spell."""

from __future__ import annotations

import difflib
import hashlib
import json
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from megatron_vlm.data.tokenizers import files
from megatron_vlm.data.tokenizers.backend import (
    Backend,
    Definition,
    FlatIds,
    GigatokenUnusable,
    Hints,
    SpecialNames,
    Vocabulary,
)
from megatron_vlm.data.tokenizers.gigatoken_engine import GigatokenEngine, open_checked
from megatron_vlm.data.tokenizers.hugging_face import HuggingFaceDefinition
from megatron_vlm.data.tokenizers.special_tokens import DEFAULT, choose
from megatron_vlm.errors import DataError

END_OF_DOCUMENT, IMAGE, PADDING = SPECIAL_TOKENS = tuple(DEFAULT)

#: what encodes in `Tokenizer.encode_flat`: gigatoken where it gives the same ids, gigatoken or an error, the library that
#: the tokenizer is of
BackendChoice: TypeAlias = Literal["auto", "gigatoken", "tokenizers"]


class Tokenizer:
    """Token ids for text, and text for token ids.

    Text is data: a caption that says "<image>" or "<|endoftext|>" is encoded as these characters, never as
    the special token. Nothing is added around a text (no BOS, no padding, no truncation), whatever
    tokenizer.json asks for. Encoding from several threads at once is safe.

    Special tokens that the tokenizer lacks are appended to its vocabulary, in the order of `SPECIAL_TOKENS`.

    Attributes:
        vocab_size: one more than the largest id.
        eod_id: id of the token that ends a document, "<|endoftext|>" by default.
        image_token_id: id of the one that holds the place of a picture, "<image>" by default.
        pad_id: id of the one that fills what is left, "<|pad|>" by default.
        special_names: the three, as they are spelt.
    """

    def __init__(
        self,
        definition: str | Definition,
        origin: str = "tokenizer",
        *,
        eod: str | None = None,
        image: str | None = None,
        pad: str | None = None,
        backend: BackendChoice = "auto",
        hints: Hints | None = None,
        at_once: bool = False,
    ) -> None:
        """From the text of a tokenizer.json, or a definition of another form; `origin` names it in errors.

        Args:
            eod, image, pad: names of the special tokens; those that the tokenizer lacks are appended. By default the first
                usual name that it has.
            backend: what encodes in `encode_flat`.
            hints: special tokens that files beside the tokenizer name, tried after the usual ones.
            at_once: make the fingerprint and open what encodes now rather than when they are first asked for: a definition
                that was just read need not be read again for them.

        Raises:
            DataError: it cannot be used; with backend "gigatoken", also when gigatoken cannot stand in for it.
        """
        if backend not in get_args(BackendChoice):
            raise DataError(f"{backend!r} is no backend of a tokenizer; give one of {', '.join(get_args(BackendChoice))}")
        self._definition = HuggingFaceDefinition(definition) if isinstance(definition, str) else definition
        vocabulary = self._definition.vocabulary(origin)
        own = vocabulary.hints()
        hints = hints or Hints()
        hints = Hints(hints.eod or own.eod, hints.pad or own.pad)
        self.special_names = names = choose(vocabulary, hints, origin, eod, image, pad)
        self._backend: Backend = vocabulary.build(names, origin)
        self.vocab_size = self._backend.size
        self.eod_id, self.image_token_id, self.pad_id = (self._backend.special_ids[name] for name in names)
        self._origin = origin
        self._choice: BackendChoice = backend
        self._engine: GigatokenEngine | Backend | None = None
        self._opening = threading.Lock()
        if at_once:
            self.fingerprint = self._identify(vocabulary)
        if at_once or backend == "gigatoken":
            self._fast(vocabulary)

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        eod: str | None = None,
        image: str | None = None,
        pad: str | None = None,
        backend: BackendChoice = "auto",
        pattern: str | None = None,
        special_tokens: Mapping[str, int] | None = None,
        at_once: bool = False,
    ) -> Tokenizer:
        """From a file or a folder: Hugging Face's tokenizer.json, a SentencePiece .model (BPE or unigram), a tiktoken rank
        file, GPT-2's vocab.json and merges.txt. The ids are those of the library that the form is of.

        tokenizer_config.json and special_tokens_map.json beside it are heeded for added tokens and names, and so is
        tokenizer_settings.json, which holds any of the arguments eod, image, pad, pattern and special_tokens.

        Args:
            eod, image, pad, backend, at_once: as of the constructor.
            pattern: of a rank file, how it splits text: "r50k", "p50k", "cl100k", "o200k", "gpt2", "qwen" or a regular
                expression; by default its file name tells.
            special_tokens: of a rank file or a SentencePiece model, names and ids of those that it does not hold.

        Raises DataError when there is none, or when it is not in its format.
        """
        found = files.find(Path(path), pattern, special_tokens)
        chosen = {"eod": eod, "image": image, "pad": pad}
        names = {key: value or found.settings.get(key) for key, value in chosen.items()}
        for key, value in names.items():
            if value is not None and not isinstance(value, str):
                raise DataError(f"{files.SETTINGS} beside {found.origin}: {key} must be a token's name, not {value!r}")
        return cls(found.definition, found.origin, **names, backend=backend, hints=found.hints, at_once=at_once)

    def save(self, folder: Path | str) -> Path:
        """Write what `load` reads into `folder`, which is made if need be; returns the path of the main file."""
        default = self._definition.form == HuggingFaceDefinition.FORM and self.special_names == DEFAULT
        return files.write(self._definition, self.special_names, Path(folder), default)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without an end of document."""
        return self._backend.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; the same as `encode` for each, on all cores and without Python's lock."""
        return self._backend.encode_batch(texts)

    def encode_flat(self, texts: Sequence[str], *, parallel: bool = False) -> FlatIds:
        """Token ids of all texts, one after another: uint32[ids], and where each text begins: int64[len(texts) + 1].

        The ids are those of `encode`, but for texts with characters that one of two libraries is too old to know
        (docs/data.md). gigatoken makes them where it can: it is opened and compared with the tokenizer's own library on
        some hundred odd texts at the first call, and a RuntimeWarning says why when it is not used.

        Args:
            parallel: use all cores. Otherwise no thread is started, here or in the libraries, and workers may be forked.
        """
        if not texts:
            return np.empty(0, np.uint32), np.zeros(1, np.int64)
        return self._fast().encode_flat(texts, parallel)

    @property
    def flat_backend(self) -> str:
        """What encodes in `encode_flat`: "gigatoken", or the form of the tokenizer; opens it if need be."""
        return "gigatoken" if isinstance(self._fast(), GigatokenEngine) else self._definition.form

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens spelled out."""
        return self._backend.decode([int(i) for i in ids])

    def special_id(self, name: str) -> int:
        """Id of the special token that is exactly `name`, the tokenizer's own included ("<|im_start|>").

        Raises DataError, naming those that are spelt alike, when there is none.
        """
        try:
            return self._backend.special_ids[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._backend.special_ids, n=3, cutoff=0.5)
            known = " or ".join(map(repr, near)) or ", ".join(map(repr, self.special_names))
            raise DataError(f"{self._origin} has no special token {name!r}; it has {known}") from None

    def has_special(self, name: str) -> bool:
        """Whether there is a special token that is exactly `name`."""
        return name in self._backend.special_ids

    def description(self) -> dict[str, Any]:
        """What a dataset's metadata say of its tokenizer: form, fingerprint, size, and the special tokens' names and ids."""
        ids = (self.eod_id, self.image_token_id, self.pad_id)
        roles = zip(SpecialNames._fields, self.special_names, ids, strict=True)
        return {
            "form": self._definition.form,
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "special_tokens": {role: {"token": name, "id": i} for role, name, i in roles},
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker need not try, and warn, again.
        choice = "tokenizers" if self._engine is self._backend else self._choice
        return _restore, (self._definition, self._origin, self.special_names, choice)

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of the tokenizer: of a tokenizer.json in canonical JSON (sorted keys, no white space), and of the
        special tokens where they are not `SPECIAL_TOKENS`."""
        return self._identify(None)

    def _identify(self, known: Vocabulary | None) -> str:
        digest = hashlib.sha256(self._definition.identity(known))
        if self._definition.form != HuggingFaceDefinition.FORM or self.special_names != DEFAULT:
            ids = [self.eod_id, self.image_token_id, self.pad_id]
            digest.update(b"\n" + json.dumps([*self.special_names, *ids]).encode())
        return digest.hexdigest()

    def _fast(self, known: Vocabulary | None = None) -> GigatokenEngine | Backend:
        with self._opening:
            if self._engine is None:
                self._engine = self._backend
                if self._choice != "tokenizers":
                    try:
                        self._engine = open_checked(self._backend, known)
                    except GigatokenUnusable as reason:
                        if self._choice == "gigatoken":
                            raise DataError(f"{self._origin}: gigatoken cannot be used: {reason}") from reason
                        warnings.warn(
                            f"{self._origin}: encoding slowly, with its own library: gigatoken cannot be used: {reason}",
                            RuntimeWarning,
                            stacklevel=3,
                        )
            return self._engine


def _restore(definition: Definition, origin: str, names: SpecialNames, backend: BackendChoice) -> Tokenizer:
    return Tokenizer(definition, origin, **names._asdict(), backend=backend)
