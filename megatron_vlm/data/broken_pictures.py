"""Pictures that turn out not to decode while a run goes on: which they are, and how they are told of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_vlm.config.pictures import BrokenPolicy
from megatron_vlm.errors import DataError

CONSEQUENCES: dict[BrokenPolicy, str] = {
    "text": "the text around it is learnt without it",
    "skip": "its document is not learnt",
}


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


def log_line(broken: BrokenPicture, prefixes: Sequence[str], step: int, policy: BrokenPolicy) -> str:
    """What a run prints. `prefixes` are those of the datasets, in the order of `data.sources`."""
    where = f"{prefixes[broken.source]}, document {broken.document}"
    return f"step {step}: {where}: the picture does not decode ({broken.reason}); {CONSEQUENCES[policy]}"


def metrics_record(
    broken: Sequence[BrokenPicture], prefixes: Sequence[str], step: int, policy: BrokenPolicy
) -> dict[str, Any]:
    """A step's line in metrics.jsonl."""
    pictures = [{**asdict(found), "source": prefixes[found.source]} for found in broken]
    for picture in pictures:
        del picture["picture"]  # of a micro-batch, which another layout would have cut otherwise
    return {"kind": "broken_pictures", "step": step, "count": len(broken), "policy": policy, "pictures": pictures}


def refuse(broken: BrokenPicture, prefixes: Sequence[str]) -> DataError:
    """What to raise under `data.pictures.broken: stop`."""
    return DataError(
        f"{prefixes[broken.source]}, document {broken.document}: the picture does not decode ({broken.reason}); preprocess "
        f"the sources again with --decode, or set data.pictures.broken to text or skip"
    )
