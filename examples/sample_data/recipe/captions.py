"""Captions: three or four short phrasings for a picture, the same on every build."""

from __future__ import annotations

from collections.abc import Collection

from recipe.concepts import Concept, fraction

_OPENINGS = ("a picture of {}", "a drawing of {}", "an icon of {}", "this is {}", "a small picture of {}")
_TAGGED = ("{name}: {tags}", "{tags}: {name}", "{name} ({tags})")
_GROUPED = ("{name}, in {group}", "{group}: {name}", "{name}, one of {group}")


def captions(concept: Concept, style: str, unspoken: Collection[str] = ()) -> list[str]:
    """Phrasings from a concept's name, tags and group, the bare name first.

    Args:
        concept: what the picture shows.
        style: the drawing style; it varies the wording, so two styles of a concept do not read alike.
        unspoken: words that may not stand as tags, such as the names of held-out concepts.

    Returns:
        Three phrasings when no tag is left, four otherwise; all different, lower-case.
    """
    tags = [tag for tag in concept.tags if tag not in unspoken][:3]
    phrasings = [concept.name, _pick(_OPENINGS, "opening", concept, style).format(concept.name)]
    if tags:
        phrasings.append(_pick(_TAGGED, "tags", concept, style).format(name=concept.name, tags=", ".join(tags)))
    phrasings.append(_pick(_GROUPED, "group", concept, style).format(name=concept.name, group=concept.group))
    return phrasings


def _pick(choices: tuple[str, ...], slot: str, concept: Concept, style: str) -> str:
    return choices[int(fraction(slot, style, concept.key) * len(choices))]
