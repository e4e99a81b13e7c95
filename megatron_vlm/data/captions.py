"""Which caption of a picture becomes its document, where there are several."""

from __future__ import annotations

import hashlib
from enum import StrEnum


class CaptionChoice(StrEnum):
    """What to do with a picture that has a list of captions."""

    FIRST = "first"
    SAMPLE = "sample"
    ALL = "all"


def choose_captions(captions: tuple[str, ...], choice: CaptionChoice, seed: int, key: str) -> tuple[str, ...]:
    """The captions that get a document each: the first, one drawn by (seed, key), or all of them.

    The draw depends on nothing but its arguments, so neither the number of workers nor the file that the
    record lies in changes it.
    """
    if choice is CaptionChoice.ALL or len(captions) <= 1:
        return captions
    if choice is CaptionChoice.FIRST:
        return captions[:1]
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return (captions[int.from_bytes(digest[:16], "big") % len(captions)],)
