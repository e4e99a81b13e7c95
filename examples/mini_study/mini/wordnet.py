"""WordNet's glosses, and the task that asks what easy nouns mean."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipe.sources import read_json

from mini.sources import STDLIB, WORDNET

PARTS = ("noun", "verb", "adj", "adv")
DEFINITIONS = 1000


@dataclass(frozen=True)
class Gloss:
    """A synset: `domain` is the lexicographer's file, such as 5 for animals."""

    part: str
    domain: int
    words: tuple[str, ...]
    text: str


def load_glosses(sources: Path) -> list[Gloss]:
    """All synsets of WordNet's data files (wndb(5WN): words from the fourth field on, the gloss after the bar)."""
    glosses = []
    for part in PARTS:
        data = (WORDNET.locate(sources) / "usr" / "share" / "wordnet" / f"data.{part}").read_text("utf-8", "replace")
        for line in data.splitlines():
            if line.startswith("  ") or "|" not in line:
                continue
            fields, _, text = line.partition("|")
            values = fields.split()
            words = [re.sub(r"\(.*\)", "", values[4 + 2 * n]).replace("_", " ") for n in range(int(values[3], 16))]
            glosses.append(Gloss(part, int(values[1]), tuple(words), text.strip()))
    return glosses


def easy_words(sources: Path) -> frozenset[str]:
    """The new Dale-Chall list: 3,000 words that most fourth-graders know."""
    [file] = (STDLIB.locate(sources) / "dale-chall-new" / "data").glob("*.json")
    return frozenset(word.lower() for word in read_json(file))


def definitions(glosses: Sequence[Gloss], easy: Collection[str], seed: int = 4) -> list[dict[str, object]]:
    """Four definitions to choose from, the wrong ones of nouns of the same domain. `word` is the one that is asked."""
    rng = random.Random(seed)
    nouns = [(g, re.split(r'; | "', g.text)[0].strip()) for g in glosses if g.part == "noun" and g.words[0] in easy]
    rng.shuffle(nouns)
    domains = defaultdict(list)
    for noun in nouns:
        domains[noun[0].domain].append(noun)
    asked: dict[str, dict[str, object]] = {}
    for gloss, meaning in nouns:
        word = gloss.words[0]
        others = [m for g, m in domains[gloss.domain] if not set(g.words) & set(gloss.words) and m != meaning]
        if word in asked or len(others) < 8 or re.search(rf"\b{re.escape(word)}", meaning):
            continue
        choices = [meaning, *rng.sample(others, 3)]
        rng.shuffle(choices)
        query = f"{word}:"
        asked[word] = {"word": word, "query": query, "choices": choices, "gold": choices.index(meaning)}
        if len(asked) == DEFINITIONS:
            break
    return list(asked.values())
