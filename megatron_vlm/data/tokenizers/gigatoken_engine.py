"""gigatoken: a hundred times faster than the libraries that it stands in for, and used only where it gives their ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_vlm.data.tokenizers.backend import Backend, FlatIds, GigatokenUnusable, Vocabulary, flatten
from megatron_vlm.data.tokenizers.check_texts import check_texts


class GigatokenEngine:
    """gigatoken's ids of texts that never spell a special token.

    Starts no thread unless it is asked for them, so that processes may be forked or spawned around it; encoding from
    several threads at once is safe.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode_flat(self, texts: Sequence[str], parallel: bool) -> FlatIds:
        if not parallel:
            # Text by text, each array made in Rust: gigatoken's batches are awkward arrays, and to import their library
            # takes longer than to encode some ten megabytes.
            return flatten([self._tokenizer.encode(text) for text in texts])
        layout = self._tokenizer.encode_batch(list(texts), parallel=parallel).layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        flat = np.asarray(layout.content.data, np.uint32)
        return flat[offsets[0] : offsets[-1]], offsets - offsets[0]


def open_checked(backend: Backend, known: Vocabulary | None = None) -> GigatokenEngine:
    """gigatoken in the place of `backend`, after both have given the same ids for `check_texts` and for the names of all
    special tokens. `known` is as of `Backend.open_gigatoken`.

    Raises:
        GigatokenUnusable: it is not installed, cannot read this tokenizer, or gives other ids; says which.
    """
    names = backend.special_ids.keys()
    texts = [*check_texts(), *names, *(f"a{name} b {name}c" for name in names)]
    try:
        engine = GigatokenEngine(backend.open_gigatoken(known))
        found = engine.encode_flat(texts, parallel=False)
    except GigatokenUnusable:
        raise
    except ImportError as error:
        raise GigatokenUnusable(f"it is not installed, pip install gigatoken ({error})") from error
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the Rust side's panics are no Exception
        raise GigatokenUnusable(f"it cannot read this tokenizer ({_one_line(error)})") from error
    expected = backend.encode_flat(texts, parallel=False)
    if not (np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])):
        raise GigatokenUnusable(f"it gives other ids for {_first_difference(texts, found, expected)!r}")
    return engine


def _first_difference(texts: Sequence[str], found: FlatIds, expected: FlatIds) -> str:
    def ids(of: FlatIds, i: int) -> list[int]:
        flat, offsets = of
        return flat[offsets[i] : offsets[i + 1]].tolist()

    text = next(text for i, text in enumerate(texts) if ids(found, i) != ids(expected, i))
    return text if len(text) <= 60 else text[:57] + "..."


def _one_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
