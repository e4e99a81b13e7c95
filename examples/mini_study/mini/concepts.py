"""Which things are drawn: names, groups and tags by OpenMoji's list, and which are never shown in training."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from recipe.concepts import code_points, fraction, plain
from recipe.sources import read_json

UNSEEN_SHARE = 0.15
#: subgroups that tell drawings apart by what no name says, or that are letters and not pictures
_DROPPED_SUBGROUPS = frozenset({"family", "skin-tone", "hair-style", "other-symbol", "alphanum", "transport-sign"})
#: drawings that vendors use for several names
_REUSED = re.compile(r"(woman|man|women|men|people|family)\b.*|.*facing right|cat face")
#: territories under the flag of another
_SAME_FLAG = frozenset(
    "Heard & McDonald Islands;Bouvet Island;Svalbard & Jan Mayen;Clipperton Island;St. Martin;Sark;Diego Garcia;"
    "Ceuta & Melilla;U.S. Outlying Islands".lower().split(";")
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
_COLOURED_GROUPS = frozenset({"symbols", "objects", "smileys-emotion", "food-drink", "animals-nature"})


@dataclass(frozen=True)
class Concept:
    """A thing with a name.

    Attributes:
        key: code points in upper case, without the variation selector.
        name: in lower case, unique.
        group, subgroup: Unicode's, such as `animals-nature` and `animal-mammal`.
        tags: words that go with it; at most eight.
    """

    key: str
    name: str
    group: str
    subgroup: str
    tags: tuple[str, ...]

    @property
    def unseen(self) -> bool:
        """Whether no training picture shows it: by hash of the key. Flags are all seen."""
        return self.group != "flags" and fraction("mini-concept", self.key) < UNSEEN_SHARE

    @property
    def group_words(self) -> str:
        return self.group.replace("-", " and ")

    @property
    def colour(self) -> tuple[str, str] | None:
        """(colour, the name without it), where the name has one colour and is of something that can have others."""
        found = [word for word in COLOURS if re.search(rf"\b{word}\b", self.name)]
        if len(found) != 1 or self.group not in _COLOURED_GROUPS or "card" in self.name:
            return None
        rest = " ".join(re.sub(rf"\b({found[0]}|light)\b", "", self.name).split())
        return (found[0], rest) if rest and rest != "leafy" else None


def load_concepts(openmoji: Path) -> list[Concept]:
    """Those of the list that one drawing tells from others, in its order, each name once."""
    concepts: dict[str, Concept] = {}
    names: set[str] = set()
    for record in read_json(openmoji / "data" / "openmoji.json"):
        name, key = plain(record["annotation"]), code_points(record["hexcode"])
        if record["skintone"] or record["group"] in ("component", "extras-openmoji", "extras-unicode"):
            continue
        if record["subgroups"] in _DROPPED_SUBGROUPS or _REUSED.fullmatch(name):
            continue
        if name.removeprefix("flag: ") in _SAME_FLAG or name in names or not name:
            continue
        tags = (tag.strip() for tag in plain(f"{record['tags']},{record['openmoji_tags']}").split(","))
        kept = tuple(dict.fromkeys(tag for tag in tags if tag and tag != name))[:8]
        names.add(name)
        concepts[key] = Concept(key, name, record["group"], record["subgroups"], kept)
    return list(concepts.values())
