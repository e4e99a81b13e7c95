"""The documents of packs by source, for the record of what went wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from megatron_vlm.data.documents import Span

#: documents of a source that a line of the log names; a record has all
_NAMED = 12


def documents_by_source(packs: Iterable[Sequence[Span]], names: Sequence[str]) -> dict[str, list[int]]:
    """Source -> the numbers of its documents in `packs`, ascending, each once. `names` are the sources by index."""
    found: dict[str, set[int]] = {}
    for pack in packs:
        for span in pack:
            found.setdefault(names[span.source], set()).add(int(span.document))
    return {name: sorted(found[name]) for name in names if name in found}


def named_documents(documents: dict[str, list[int]], between: str = " ") -> str:
    """`text 3, 17, 20 and 40 more; captions 5`, of bounded length; `between` stands between a name and its numbers."""
    parts = []
    for name, numbers in documents.items():
        more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
        parts.append(f"{name}{between}{', '.join(str(number) for number in numbers[:_NAMED])}{more}")
    return "; ".join(parts)
