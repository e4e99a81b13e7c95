"""The tokenizer: Hugging Face's tokenizer.json, with three special tokens that data cannot spell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_vlm.data import atomic_file
from megatron_vlm.errors import DataError

END_OF_DOCUMENT = "<|endoftext|>"
IMAGE = "<image>"
PADDING = "<|pad|>"
SPECIAL_TOKENS = (END_OF_DOCUMENT, IMAGE, PADDING)

FILE_NAME = "tokenizer.json"


class Tokenizer:
    """Token ids for text, and text for token ids.

    Text is data: a caption that says "<image>" or "<|endoftext|>" is encoded as these characters, never as
    the special token. Nothing is added around a text (no BOS, no padding, no truncation), whatever
    tokenizer.json asks for. Encoding from several threads at once is safe.

    Special tokens that tokenizer.json lacks are appended to its vocabulary, in the order of `SPECIAL_TOKENS`.

    Attributes:
        vocab_size: one more than the largest id.
        eod_id: id of "<|endoftext|>", which ends a document.
        image_token_id: id of "<image>", which holds the place of a picture.
        pad_id: id of "<|pad|>".
        fingerprint: sha256, in hex, of the tokenizer in canonical JSON (sorted keys, no white space).
    """

    def __init__(self, definition: str, origin: str = "tokenizer") -> None:
        """From the text of a tokenizer.json; `origin` names it in errors.

        Raises DataError when it cannot be used.
        """
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        try:
            parsed: dict[str, Any] = json.loads(definition)
            # Only tokens marked as special can be kept from matching in data.
            for token in parsed.get("added_tokens", []):
                token["special"] = token["special"] or token["content"] in SPECIAL_TOKENS
            backend: Any = Backend.from_str(json.dumps(parsed))
        except Exception as error:  # the Rust side raises bare Exception
            raise DataError(f"{origin} is not a Hugging Face tokenizer.json: {error}") from error
        backend.no_padding()
        backend.no_truncation()
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
        backend.encode_special_tokens = True
        self._backend = backend
        self._definition = definition
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        self.eod_id, self.image_token_id, self.pad_id = (self._id(token) for token in SPECIAL_TOKENS)
        # Of the definition as it was given: as the library writes it, it may gain fields in a newer version.
        canonical = json.dumps(json.loads(definition), sort_keys=True, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        self._check_specials(origin)

    @classmethod
    def load(cls, path: Path | str) -> Tokenizer:
        """From a tokenizer.json, or from a folder that holds one.

        Raises DataError when there is none, or when it is not in Hugging Face's format.
        """
        file = Path(path)
        if file.is_dir():
            file = file / FILE_NAME
        try:
            definition = file.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise DataError(f"{file} does not exist; `megatron-vlm train-tokenizer` makes a tokenizer.json") from error
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} cannot be read as a tokenizer.json: {error}") from error
        return cls(definition, origin=str(file))

    def save(self, folder: Path | str) -> Path:
        """Write tokenizer.json into `folder`, which is made if need be; returns its path."""
        path = Path(folder) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_file.write_text(path, self._definition)
        return path

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without an end of document."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; the same as `encode` for each, on all cores and without Python's lock."""
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens spelled out."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str]]:
        return (Tokenizer, (self._definition,))

    def _id(self, token: str) -> int:
        return int(self._backend.token_to_id(token))

    def _check_specials(self, origin: str) -> None:
        """Refuse a vocabulary that spells a special token as a plain word, which nothing above prevents."""
        for token in SPECIAL_TOKENS:
            if self._id(token) in self.encode(token) or self._id(token) in self.encode(f"a {token} b"):
                raise DataError(
                    f"{origin}: its vocabulary has {token!r} as an ordinary word, so text could forge "
                    "the special token; rename that entry"
                )
