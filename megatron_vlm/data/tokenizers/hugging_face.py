"""Hugging Face's tokenizer.json, through the library tokenizers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson

from megatron_vlm.data import atomic_file
from megatron_vlm.data.tokenizers.backend import FlatIds, Hints, SpecialNames, Vocabulary, flatten
from megatron_vlm.data.tokenizers.canonical_json import canonical_json
from megatron_vlm.errors import DataError

FILE_NAME = "tokenizer.json"


@dataclass(frozen=True)
class HuggingFaceDefinition:
    """The text of a tokenizer.json."""

    FORM: ClassVar[str] = "tokenizer.json"

    text: str

    @property
    def form(self) -> str:
        return self.FORM

    def identity(self, known: Vocabulary | None = None) -> bytes:
        # Of the definition as it was given: as the library writes it, it may gain fields in a newer version.
        return canonical_json(self.text, known.parsed if isinstance(known, HuggingFaceVocabulary) else None)

    def vocabulary(self, origin: str) -> HuggingFaceVocabulary:
        return HuggingFaceVocabulary(self.text, origin)

    def write(self, folder: Path) -> Path:
        atomic_file.write_text(folder / FILE_NAME, self.text)
        return folder / FILE_NAME

    def settings(self) -> dict[str, Any]:
        return {}


class HuggingFaceVocabulary:
    """A parsed tokenizer.json. Raises DataError where it is none."""

    def __init__(self, text: str, origin: str) -> None:
        self.text = text
        try:
            self.parsed: dict[str, Any] = _parsed(text)  # nobody changes it
            added = self.parsed.get("added_tokens") or []
            self._added = {t["content"]: {**t, "id": int(t["id"]), "special": bool(t["special"])} for t in added}
            words = self.parsed["model"]["vocab"]
            # a unigram model has a list of [word, score]; its ids are the places in it
            self._words: dict[str, int] = words if isinstance(words, dict) else {w: i for i, (w, _) in enumerate(words)}
        except Exception as error:  # whatever a file that is something else leads to
            raise DataError(f"{origin} is not a Hugging Face tokenizer.json: {_said(error)}") from error

    def token_id(self, name: str) -> int | None:
        return int(self._added[name]["id"]) if name in self._added else self._words.get(name)

    def is_special(self, name: str) -> bool:
        return bool(self._added.get(name, {}).get("special"))

    def hints(self) -> Hints:
        return Hints()

    def build(self, names: SpecialNames, origin: str) -> HuggingFaceBackend:
        # Only tokens marked as special can be kept from matching in data.
        special = [name for name, token in self._added.items() if token["special"] or name in names]
        text = self.text
        if any(not self._added[name]["special"] for name in special):
            added = [{**token, "special": name in special} for name, token in self._added.items()]
            text = json.dumps({**self.parsed, "added_tokens": added})
        model = self.parsed["model"]
        return HuggingFaceBackend(text, names, special, model.get("type"), model.get("unk_token"), self._words, origin)


class HuggingFaceBackend:
    """As of `megatron_vlm.data.tokenizers.backend.Backend`. Encoding from several threads at once is safe."""

    def __init__(
        self,
        text: str,
        names: SpecialNames,
        special: Iterable[str],
        model: str | None,
        unknown: str | None,
        words: Mapping[str, int],
        origin: str,
    ) -> None:
        from tokenizers import AddedToken

        backend = _open(text, origin)
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in names])
        self._decoder = self._encoder = backend
        self._text = text
        self.size = 1 + max(*words.values(), *backend.get_added_tokens_decoder())  # at once, where get_vocab() makes a map
        self.special_ids = {name: int(backend.token_to_id(name)) for name in dict.fromkeys([*names, *special])}
        # an unknown token stands for what the model cannot say: text that says its name says nothing else
        guarded = [name for name in self.special_ids if name != unknown or name in names]
        # where words are merged from letters, what is left can still be said without a word that is taken out
        if model in ("BPE", "Unigram") and self._forged(guarded):
            # Its model has special tokens among its ordinary words, as those made from SentencePiece models do.
            # The others stay, or those added after them would get other ids.
            words = backend.get_vocab(with_added_tokens=False)
            self._encoder = _open(without_special_tokens(text, [n for n in self.special_ids if n in words]), origin)
        for token in self._forged(names):
            raise DataError(
                f"{origin}: its vocabulary has {token!r} as an ordinary word, so text could forge "
                "the special token; rename that entry"
            )

    def encode(self, text: str) -> list[int]:
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_flat(self, texts: Sequence[str], parallel: bool) -> FlatIds:
        # A batch uses the library's threads, which it starts at the first one; only its environment variable forbids it.
        if parallel or os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("false", "0", "off", "no", "n", "f"):
            return flatten(self.encode_batch(texts))
        return flatten([self.encode(text) for text in texts])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._decoder.decode(list(ids), skip_special_tokens=False))

    def open_gigatoken(self, known: Vocabulary | None = None) -> Any:
        from gigatoken.gigatoken_rs import load_hf_json

        # the backend may be of another text: of tokens that were marked as special
        said = known.parsed if isinstance(known, HuggingFaceVocabulary) and known.text == self._text else None
        return load_hf_json(without_special_tokens(self._text, self.special_ids, said))

    def _forged(self, names: Iterable[str]) -> list[str]:
        def spelt(name: str) -> bool:
            return self.special_ids[name] in self.encode(name) or self.special_ids[name] in self.encode(f"a {name} b")

        return [name for name in names if spelt(name)]


def without_special_tokens(text: str, special: Iterable[str], known: Mapping[str, Any] | None = None) -> str:
    """A tokenizer.json of the same ids in which `special` are neither added tokens nor words that text could spell.

    Nothing is left that would be put around a text. `known` is what `text` says, where that was read already.
    """
    parsed: dict[str, Any] = dict(_parsed(text) if known is None else known)
    model = parsed["model"] = dict(parsed["model"])
    special = set(special)
    parsed["added_tokens"] = [t for t in parsed.get("added_tokens") or [] if t["content"] not in special]
    parsed["post_processor"] = parsed["padding"] = parsed["truncation"] = None

    def hidden(word: str) -> str:
        return f"\0{word} as text\0" if word in special else word

    if isinstance(model["vocab"], dict):
        model["vocab"] = dict(model["vocab"])
        for word in special & model["vocab"].keys():
            model["vocab"][hidden(word)] = model["vocab"].pop(word)
    else:
        model["vocab"] = [[hidden(word), score] for word, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = hidden(model["unk_token"])
    # most often no merge makes a special token, which one look at all of them tells
    made = all_merges(model.get("merges") or [])
    if any(name in made for name in special):
        pairs = ((m, m.split(" ")) if isinstance(m, str) else (m, m) for m in model["merges"])
        model["merges"] = [m for m, pair in pairs if special.isdisjoint((*pair, "".join(pair)))]
    return orjson.dumps(parsed).decode()


def all_merges(merges: Sequence[Any]) -> str:
    """The merges as one text, in which both parts of a pair and what they make are found."""
    if merges and isinstance(merges[0], str):
        return "\n".join(merges).replace(" ", "")
    return "\n".join(map("".join, merges))


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:  # such as of a lone surrogate, which Python's own reader takes
        return json.loads(text)


def _open(text: str, origin: str) -> Any:
    from tokenizers import Tokenizer

    try:
        backend: Any = Tokenizer.from_str(text)
    except Exception as error:  # the Rust side raises bare Exception
        raise DataError(f"{origin} is not a Hugging Face tokenizer.json: {error}") from error
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend


def _said(error: Exception) -> str:
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)
