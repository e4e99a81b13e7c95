"""What is asked of a picture, in one wording for the instruction set and for the tasks."""

from __future__ import annotations

from dataclasses import dataclass

from mini.concepts import Concept


@dataclass(frozen=True)
class Asked:
    """A question and its answer."""

    question: str
    answer: str


def naming(concept: Concept) -> Asked:
    return Asked("What is this?", concept.name)


def category(concept: Concept) -> Asked:
    return Asked("Which group does this belong to?", concept.group_words)


def colour(concept: Concept) -> Asked | None:
    found = concept.colour
    return None if found is None else Asked(f"What colour is the {found[1]}?", found[0])


def presence(concept: Concept, there: bool) -> Asked:
    return Asked(f"Is there a {concept.name} in the picture?", "yes" if there else "no")


def what_is_at(place: str, concept: Concept) -> Asked:
    return Asked(f"What is in the {place} of the picture?", concept.name)


def where_is(concept: Concept, place: str) -> Asked:
    return Asked(f"Where is the {concept.name}?", place)


def how_many(concept: Concept, many: int) -> Asked:
    return Asked(f"How many of these: {concept.name}?", str(many))
