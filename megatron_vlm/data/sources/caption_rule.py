"""Which text of a record is a picture's caption: fields, drawn by weight, and captions among the ones of a field."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_vlm.data.captions import CaptionChoice, choose_captions
from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.records import Document, Picture, Text
from megatron_vlm.data.sources.json_values import is_encodable, kind_of
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class CaptionRule:
    """Where captions are, and which of them get a document each.

    A field may hold a string, or a list of strings. Where there are several fields, one is drawn for each record among those
    that it has, by their weights, by `seed` and the record's key and nothing else; `choice` then says what to do with a
    list. CaptionChoice.ALL draws nothing: every caption of every field makes a document.

    Attributes:
        fields: (name, weight), as the format names its fields; none: what the format's default is.
        choice: the first of a list, one drawn by seed and key, or all.
        seed: seeds what is drawn.

    Raises:
        ConfigError: a weight that is not a positive number, or a field that is named twice.
    """

    fields: tuple[tuple[str, float], ...] = ()
    choice: CaptionChoice = CaptionChoice.FIRST
    seed: int = 0

    def __post_init__(self) -> None:
        for name, weight in self.fields:
            if not (weight > 0 and math.isfinite(weight)):
                raise ConfigError(f"captions: the weight of {name!r} is {weight}; give a positive number, such as 1")
        if len({name for name, _ in self.fields}) < len(self.fields):
            raise ConfigError("captions: a field is named twice; name it once, with one weight")

    def choose(
        self, find: Callable[[str], Any], defaults: tuple[str, ...], key: str, known: Callable[[], str]
    ) -> tuple[str, ...]:
        """The captions of a record that get a document each; stripped, none of them empty.

        Args:
            find: the value of a field by its name; None where the record has none.
            defaults: fields to look into where the rule names none; the first that there is counts.
            key: the record's.
            known: tells what the record has, for the error.

        Raises Unusable: no field is there, one holds neither a string nor strings, all are empty, or not Unicode.
        """
        names = [name for name, _ in self.fields] if self.fields else defaults
        found = {name: value for name in names if (value := find(name)) is not None}
        if not found:
            wanted = " or ".join(map(repr, names))
            raise Unusable(Reason.MISSING_CAPTION, f"no {wanted}; it has {known()}")
        if not self.fields and len(found) > 1:
            found = dict([next(iter(found.items()))])
        captions = {name: texts for name, value in found.items() if (texts := _texts(name, value))}
        if not captions:
            raise Unusable(Reason.EMPTY_TEXT, f"the caption ({' and '.join(found)}) is empty")
        if self.choice is CaptionChoice.ALL:
            return tuple(text for texts in captions.values() for text in texts)
        drawn = self._draw(tuple(captions), key) if len(captions) > 1 else next(iter(captions))
        return choose_captions(captions[drawn], self.choice, self.seed, key)

    def _draw(self, names: tuple[str, ...], key: str) -> str:
        weights = [(name, weight) for name, weight in self.fields if name in names]
        digest = hashlib.sha256(f"{self.seed}\0{key}\0field".encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64 * math.fsum(weight for _, weight in weights)
        for name, weight in weights:
            place -= weight
            if place < 0:
                return name
        return weights[-1][0]


def caption_rule(
    captions: str | Mapping[str, float] | None = None, choice: CaptionChoice = CaptionChoice.FIRST, seed: int = 0
) -> CaptionRule:
    """A rule from what a person writes: a field, weights by field, or nothing for the format's default.

    Raises ConfigError as `CaptionRule` does, and where `captions` is empty.
    """
    if captions is None:
        return CaptionRule((), choice, seed)
    weights = {captions: 1.0} if isinstance(captions, str) else captions
    if not weights or "" in weights:
        raise ConfigError("captions: it names no field; name one, or leave it out for the default")
    return CaptionRule(tuple((name, float(weight)) for name, weight in weights.items()), choice, seed)


def picture_documents(encoded: bytes, captions: tuple[str, ...]) -> tuple[Document, ...]:
    """A document for each caption: the picture, then the text."""
    picture = Picture(encoded)
    return tuple((picture, Text(caption)) for caption in captions)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if type(value) is str and value.isascii():  # as nearly all are
        return (text,) if (text := value.strip()) else ()
    candidates = value if isinstance(value, list) else [value]
    for candidate in candidates:
        if not isinstance(candidate, str):
            raise Unusable(
                Reason.MISSING_CAPTION, f"caption {name!r} is {kind_of(candidate)}, neither a string nor a list of strings"
            )
        if not is_encodable(candidate):
            raise Unusable(Reason.INVALID_UNICODE, f"caption {name!r} has half of a surrogate pair")
    return tuple(text for candidate in candidates if (text := candidate.strip()))
