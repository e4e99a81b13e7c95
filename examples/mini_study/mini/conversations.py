"""The instruction set: questions about training drawings and grids of them, in LLaVA's form."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mini import questions
from mini.concepts import Concept
from mini.drawings import TRAINING_STYLES, Drawing
from mini.grids import MOST, PLACES, Grid, compose, counted


@dataclass(frozen=True)
class Conversation:
    """Questions about one picture, by its file's name."""

    picture: str
    asked: tuple[questions.Asked, ...]

    def llava(self, number: int) -> dict[str, object]:
        turns = [turn for a in self.asked for turn in ({"from": "human", "value": a.question}, _said(a.answer))]
        turns[0]["value"] = "<image>" + turns[0]["value"]
        return {"id": str(number), "image": self.picture, "conversations": turns}


def _said(answer: str) -> dict[str, str]:
    return {"from": "gpt", "value": answer}


def make_grids(
    concepts: Sequence[Concept], drawings: Mapping[tuple[str, str], Drawing], many: int, seed: int = 2
) -> list[tuple[Grid, Conversation]]:
    """Training grids: two of three are of four things, the third shows one to six of a thing among others."""
    rng = random.Random(seed)
    seen = [c for c in concepts if not c.unseen]
    by_style = {style: [c for c in seen if (c.key, style) in drawings] for style in TRAINING_STYLES}
    made = []
    for number in range(many):
        style = rng.choice(TRAINING_STYLES)
        name = f"train-grid-{number:05d}.png"
        if number % 3 < 2:
            *cells, absent = rng.sample(by_style[style], 5)
            grid = compose(name, style, cells, drawings)
            here, there = rng.randrange(4), rng.randrange(4)
            asked = [
                questions.presence(cells[here], True) if rng.random() < 0.5 else questions.presence(absent, False),
                questions.what_is_at(PLACES[there], cells[there]),
                questions.where_is(cells[here], PLACES[here]),
            ]
            rng.shuffle(asked)
        else:
            target, *others = rng.sample(by_style[style], 3)
            count = rng.randint(1, MOST)
            grid = compose(name, style, counted(rng, count, target, others), drawings)
            asked = [questions.how_many(target, count)]
        made.append((grid, Conversation(name, tuple(asked))))
    return made


def about_drawings(drawings: Sequence[Drawing], many: int, seed: int = 3) -> list[Conversation]:
    """A conversation each about `many` training drawings: its name or group, and its colour where its name tells one."""
    rng = random.Random(seed)
    made = []
    for drawing in rng.sample(list(drawings), min(many, len(drawings))):
        concept = drawing.concept
        asked = [rng.choice((questions.naming, questions.category))(concept)]
        if (colour := questions.colour(concept)) is not None:
            asked.append(colour)
        made.append(Conversation(f"{drawing.name}.png", tuple(asked)))
    return made
