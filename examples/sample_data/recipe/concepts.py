"""Which things the pictures show: names, tags and groups, and the filter that leaves only nameable drawings.

A concept is one emoji code point sequence. It is kept when a person who sees the drawing alone could say
its name, so that the caption is evidence about the picture: skin tones, gender variants, flags, buttons with
text, clock faces and faces whose names are interchangeable ("hushed face", "anguished face") are left out.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from megatron_vlm.errors import DataError
from recipe.sources import read_json

# Families of names for one drawing with small changes, or for text to be read rather than seen. Whole
# subgroups and single names are in lists/.
DROPPED_NAMES = re.compile(
    r"""
      (man|woman|men|women|people|pregnant|breast-feeding|mrs\.|mx|oncoming)\b.*   # gender, front views
    | person\ (with|feeding|wearing|in\ tuxedo|kneeling|standing).*
    | .*(facing\ right|o'clock|-thirty|\bmedium\b|-small\b|button|gesture|bubble).*
    | (grinning|beaming|slightly|kissing)\b.*\bface.* | smiling\ face(\ with\ smiling\ eyes)?
    | (white|black)\ small\ square | small\ (orange|blue)\ diamond | diamond\ with\ a\ dot
    | (waxing|waning|first\ quarter|last\ quarter)\ .* | (full|new)\ moon\ face
    | ((palm|palms)\ (up|down)|left-facing|right-facing|leftwards|rightwards|open\ hands|backhand\ index)\b.*
    | globe\ .* | (mobile\ phone|envelope)\ with\ arrow | incoming\ envelope
    | magnifying\ glass\ tilted\ right
    | (muted|speaker)\ .* | .*\ mailbox\ .* | (middle\ finger|love\ hotel|kaaba|japanese\ post\ office)
    | sun\ behind\ (small|large)\ cloud | airplane\ (departure|arrival) | .*\ and\ mouth | anger\ symbol | zzz
    """,
    re.VERBOSE,
)

HELDOUT_SHARE = 0.12
"""Share of the concepts that no training picture shows."""
_LISTS = Path(__file__).with_name("lists")
_TAG = re.compile(r"[a-z]{3,}( [a-z]{3,})?")


@dataclass(frozen=True)
class Concept:
    """A thing that can be drawn.

    Attributes:
        key: upper-case code points without the emoji variation selector, for example ``"1F34E"``.
        name: lower-case ASCII name, unique among the concepts.
        group: one of eight Unicode groups as prose, for example ``"food & drink"``.
        tags: lower-case words that go with it, most shared within its group first, none a part of the name.
    """

    key: str
    name: str
    group: str
    tags: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether no picture of it is trained on: about one concept in nine, by hash of the key."""
        return fraction("concept", self.key) < HELDOUT_SHARE


def fraction(*parts: str) -> float:
    """A number in [0, 1) that depends on the text alone, the same everywhere: for splits, shuffles."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def code_points(text: str) -> str:
    """A code point sequence such as ``"2764-fe0f"`` in the spelling that all packages can be joined on.

    Packages disagree about case and about U+FE0F, which asks for the coloured form and never changes what is
    drawn.
    """
    return "-".join(part for part in text.upper().split("-") if part != "FE0F")


def plain(text: str) -> str:
    """Lower-case ASCII: typographic quotes straightened or dropped, accents taken off."""
    straight = text.replace("\u2019", "'").replace("\u201c", "").replace("\u201d", "")
    return unicodedata.normalize("NFKD", straight).encode("ascii", "ignore").decode().lower().strip()


def load_concepts(emojibase: Path) -> list[Concept]:
    """The concepts of emojibase-data's English list that the filters above keep, in its own order.

    Raises:
        DataError: when a list is missing or a record lacks a field.
    """
    data_file = emojibase / "en" / "data.json"
    subgroups = read_json(emojibase / "meta" / "groups.json")["subgroups"]
    messages = read_json(emojibase / "en" / "messages.json")["groups"]
    groups = {group["order"]: plain(group["message"]) for group in messages}
    dropped, ambiguous, poor = map(_listed, ("dropped_subgroups", "ambiguous_names", "poor_tags"))
    records = read_json(data_file)
    _refuse_stale(dropped, set(subgroups.values()), "dropped_subgroups")
    _refuse_stale(ambiguous, {plain(record.get("label", "")) for record in records}, "ambiguous_names")
    kept = []
    for index, record in enumerate(records):
        try:
            if "group" not in record or subgroups[str(record["subgroup"])] in dropped:
                continue
            name = plain(record["label"])
            if name not in ambiguous and not DROPPED_NAMES.fullmatch(name):
                tags = frozenset(map(plain, record.get("tags", ()))) - poor
                kept.append((code_points(record["hexcode"]), name, groups[record["group"]], tags))
        except KeyError as error:
            raise DataError(f"{data_file}: record {index} lacks {error}; use the pinned version of the package") from error
    shared = Counter((group, tag) for _, _, group, tags in kept for tag in tags)
    return [Concept(key, name, group, _ranked_tags(name, group, tags, shared)) for key, name, group, tags in kept]


def _ranked_tags(name: str, group: str, tags: frozenset[str], shared: Counter[tuple[str, str]]) -> tuple[str, ...]:
    words = set(re.findall(r"[a-z]+", name))
    usable = [tag for tag in tags if _TAG.fullmatch(tag) and not words & set(tag.split())]
    # Shared tags are kinds of things (animal, fruit); tags of one concept alone are often stray associations.
    return tuple(sorted(usable, key=lambda tag: (-shared[group, tag], tag)))


def _listed(name: str) -> frozenset[str]:
    lines = (_LISTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def _refuse_stale(listed: frozenset[str], known: set[str], name: str) -> None:
    """A misspelt line would silently keep what it was meant to drop."""
    if unknown := sorted(listed - known):
        raise DataError(f"{_LISTS / name}.txt: emojibase-data has no {unknown[0]!r}; correct or remove that line")
