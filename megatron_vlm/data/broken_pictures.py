"""Pictures that turn out not to decode while a run goes on: which they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_vlm.errors import DataError


@dataclass(frozen=True, slots=True, order=True)
class BrokenPicture:
    """One picture of a step that did not decode; the pixels in its place are mid-grey.

    Attributes:
        source: number of its source among `data.sources`.
        document, sequence: numbers in the source's dataset.
        picture: its number in the micro-batch, in reading order.
        reason: what the decoder said.
    """

    source: int
    document: int
    sequence: int
    picture: int
    reason: str


def refuse(broken: BrokenPicture, prefixes: Sequence[str]) -> DataError:
    """What to raise where a broken picture ends the run."""
    return DataError(
        f"{prefixes[broken.source]}, document {broken.document}: the picture does not decode ({broken.reason}); preprocess "
        f"the sources again with --decode"
    )
