"""Six visual tasks: name, category, presence, count, colour, position. Nothing that they show was trained on as it is there:
grids and names are in the held-out style, categories of concepts that no training picture shows."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mini import questions
from mini.concepts import COLOURS, Concept
from mini.drawings import HELD_OUT_STYLE, STYLES, TRAINING_STYLES, Drawing
from mini.grids import MOST, PLACES, Grid, compose, counted

NAMES, COUNTS, GRIDS = 500, 500, 250


@dataclass
class VisualTasks:
    """Records by task, and the pictures that they name beside the drawings."""

    records: dict[str, list[dict[str, object]]] = field(default_factory=lambda: defaultdict(list))
    grids: list[Grid] = field(default_factory=list)
    drawings: dict[str, Drawing] = field(default_factory=dict)

    def ask(self, task: str, picture: str, asked: questions.Asked, choices: Sequence[str], **more: object) -> None:
        self.records[task].append(
            {
                "image": picture,
                "query": asked.question,
                "choices": list(choices),
                "gold": choices.index(asked.answer),
                **more,
            }
        )


def make_visual_tasks(
    concepts: Sequence[Concept], drawings: Mapping[tuple[str, str], Drawing], seed: int = 1
) -> VisualTasks:
    """Drawn by `seed` alone. Wrong names are of any kind; every second absent thing is of a present one's kind."""
    rng = random.Random(seed)
    tasks = VisualTasks()
    seen = [c for c in concepts if not c.unseen and c.group != "flags" and (c.key, HELD_OUT_STYLE) in drawings]
    _singles(tasks, rng, concepts, seen, drawings)
    kin: dict[str, list[Concept]] = defaultdict(list)
    for concept in seen:
        kin[concept.subgroup].append(concept)
    for number in range(GRIDS):
        cells = rng.sample(seen, 4)
        grid = compose(f"grid-{number:04d}.png", HELD_OUT_STYLE, cells, drawings)
        tasks.grids.append(grid)
        shown = rng.choice(cells)
        like = [c for c in kin[shown.subgroup] if c not in cells] if number % 2 else []
        absent = rng.choice(like or [c for c in seen if c not in cells])
        for concept, there in ((shown, True), (absent, False)):
            asked = questions.presence(concept, there)
            kind = "adversarial" if like else "random"
            record = {"image": grid.name, "text": asked.question, "label": asked.answer, "category": kind}
            tasks.records["presence"].append(record)
        at = rng.randrange(4)
        tasks.ask("position", grid.name, questions.what_is_at(PLACES[at], cells[at]), [c.name for c in cells], kind="what")
        at = rng.randrange(4)
        tasks.ask("position", grid.name, questions.where_is(cells[at], PLACES[at]), PLACES, kind="where")
    for number in range(COUNTS):
        many = 1 + number % MOST
        target, *others = rng.sample(seen, 3)
        grid = compose(f"count-{number:04d}.png", HELD_OUT_STYLE, counted(rng, many, target, others), drawings)
        tasks.grids.append(grid)
        tasks.ask("count", grid.name, questions.how_many(target, many), [str(n) for n in range(1, MOST + 1)])
    return tasks


def _singles(
    tasks: VisualTasks,
    rng: random.Random,
    concepts: Sequence[Concept],
    seen: Sequence[Concept],
    drawings: Mapping[tuple[str, str], Drawing],
) -> None:
    def shown(drawing: Drawing) -> str:
        tasks.drawings[f"{drawing.name}.png"] = drawing
        return f"{drawing.name}.png"

    for concept in rng.sample(list(seen), NAMES):
        wrong = rng.sample([c for c in seen if c is not concept], 3)
        choices = [concept.name, *(c.name for c in wrong)]
        rng.shuffle(choices)
        tasks.ask("name", shown(drawings[concept.key, HELD_OUT_STYLE]), questions.naming(concept), choices)
    groups = sorted({c.group_words for c in concepts} - {"flags"})
    for concept in concepts:
        if concept.unseen:
            styles = [s for s in TRAINING_STYLES if (concept.key, s) in drawings]
            if styles:
                asked = questions.category(concept)
                choices = [asked.answer, *rng.sample([g for g in groups if g != asked.answer], 3)]
                rng.shuffle(choices)
                tasks.ask("category", shown(drawings[concept.key, rng.choice(styles)]), asked, choices)
        if (coloured := questions.colour(concept)) is not None:
            # an unseen thing in every style, a seen one only in the style that is held out
            for style in STYLES if concept.unseen else (HELD_OUT_STYLE,):
                if (concept.key, style) in drawings:
                    tasks.ask("colour", shown(drawings[concept.key, style]), coloured, COLOURS)
