"""Two text tasks out of prose that is not trained on: which sentence comes next, and which word order is right."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from mini.prose import Document

QUESTIONS = 1000
_SOURCES = ("state-of-the-union", "moby-dick", "anarchism")


def next_sentences(documents: Iterable[Document], seed: int = 5) -> list[dict[str, object]]:
    """Two sentences, and four later ones of the same document of which the first is the next."""
    rng = random.Random(seed)
    made = []
    for document, sentences in _held_out(documents):
        for at in range(1, len(sentences) - 8, 5):
            choices = [sentences[at + 1], *rng.sample(sentences[at + 2 :], 3)]
            rng.shuffle(choices)
            query = f"{sentences[at - 1]} {sentences[at]}"
            gold = choices.index(sentences[at + 1])
            made.append({"query": query, "choices": choices, "gold": gold, "source": document.source})
    return rng.sample(made, min(QUESTIONS, len(made)))


def word_swaps(documents: Iterable[Document], seed: int = 6) -> list[dict[str, object]]:
    """A sentence, and the same with two neighbouring words exchanged."""
    rng = random.Random(seed)
    made = []
    for document, sentences in _held_out(documents):
        for sentence in sentences[::2]:
            words = sentence.split()
            if len(words) < 7:
                continue
            at = rng.randrange(2, len(words) - 2)
            if words[at].lower() == words[at + 1].lower():
                continue
            swapped = [*words[:at], words[at + 1], words[at], *words[at + 2 :]]
            # the first word is given, so that both begin alike; the rest is compared whole
            choices = [" ".join(words[1:]), " ".join(swapped[1:])]
            gold = rng.randrange(2)
            made.append({"query": words[0], "choices": choices if gold == 0 else choices[::-1], "gold": gold,
                         "source": document.source})  # fmt: skip
    return rng.sample(made, min(QUESTIONS, len(made)))


def _held_out(documents: Iterable[Document]) -> Iterable[tuple[Document, list[str]]]:
    for document in documents:
        if document.held_out and document.source in _SOURCES:
            pieces = re.split(r"(?<=[.!?])\s+", re.sub(r"\s+", " ", document.text))
            yield document, [piece for piece in pieces if 40 < len(piece) < 220 and piece[0].isupper()]
