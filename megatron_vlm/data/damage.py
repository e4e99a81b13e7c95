"""What is wrong with a dataset: where in which file, which documents that touches, and how many such places there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

#: damage of one kind that is listed; more is only counted
LISTED = 100


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged place.

    Attributes:
        file: which file of the dataset.
        reason: what is wrong, in words.
        start, stop: the bytes that it lies in, as far as they are known.
        first_document, last_document: the documents that it touches, both included, as far as they are known.
    """

    file: Path
    reason: str
    start: int | None = None
    stop: int | None = None
    first_document: int | None = None
    last_document: int | None = None

    def describe(self) -> str:
        """One line for a person."""
        line = f"{self.file}: {self.reason}"
        if self.start is not None and self.stop is not None:
            line += f"; bytes {self.start:,} to {self.stop:,}"
        if self.first_document is not None and self.last_document is not None:
            one = self.first_document == self.last_document
            line += (
                f"; document {self.first_document:,}"
                if one
                else (f"; documents {self.first_document:,} to {self.last_document:,}")
            )
        return line

    def as_json(self) -> dict[str, Any]:
        """The fields, the file as a string."""
        return {**asdict(self), "file": str(self.file)}


class Findings:
    """Damage as it is found: all of it is counted, of each kind the first `LISTED` are kept."""

    def __init__(self) -> None:
        self.listed: list[Damage] = []
        self.counts: dict[str, int] = {}

    @property
    def total(self) -> int:
        """How many damaged places there are."""
        return sum(self.counts.values())

    def add(self, kind: str, damage: Damage) -> None:
        """`kind` names what belongs together, such as "checksum"."""
        self.add_at(kind, [0], lambda _: damage)

    def add_at(self, kind: str, places: Sequence[Any] | npt.NDArray[Any], describe: Callable[[Any], Damage]) -> None:
        """A damage at each of `places`, of which only those that are listed are described."""
        seen = self.counts.get(kind, 0)
        if len(places):
            self.counts[kind] = seen + len(places)
        self.listed.extend(describe(place) for place in places[: max(0, LISTED - seen)])

    @property
    def unlisted(self) -> int:
        """How many there are beside those listed."""
        return self.total - len(self.listed)
