"""The mini study's recipe on drawings of a few concepts: what is held out stays out, and what is asked has its answer."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_vlm.config.loading import parse_yaml
from megatron_vlm.data.sources.chat_template import load_template
from megatron_vlm.evaluation.questions import read_questions
from megatron_vlm.evaluation.task import load_task
from megatron_vlm.study.study_file import read_study

EXAMPLES = Path(__file__).parents[2] / "examples"
HERE = EXAMPLES / "mini_study"


@pytest.fixture(scope="module")
def mini() -> Iterator[Any]:
    """The recipe's modules by name, found as `build.py` finds them."""
    places = [str(HERE), str(EXAMPLES / "sample_data")]
    sys.path[:0] = places
    names = ("concepts", "drawings", "grids", "questions", "visual_tasks", "conversations")
    names += ("wordnet", "text_tasks", "prose", "writing", "sources")
    try:
        yield SimpleNamespace(**{name: importlib.import_module(f"mini.{name}") for name in names})
    finally:
        for place in places:
            sys.path.remove(place)
        for name in [n for n in sys.modules if n.partition(".")[0] in ("mini", "recipe")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def concepts(mini: Any) -> list[Any]:
    """Enough for grids and names; some are unseen, by their hash."""
    groups = ("animals-nature", "food-drink", "objects", "flags", "travel-places", "symbols")
    colours = ("red", "blue", "large", "green")
    return [
        mini.concepts.Concept(f"1F{n:03X}", f"{colours[n % 4]} thing {n}", groups[n % 6], f"kind-{n % 60}", ("tag",))
        for n in range(900)
    ]


@pytest.fixture(scope="module")
def table(mini: Any, concepts: list[Any]) -> dict[tuple[str, str], Any]:
    """A drawing of each in every style, of one grey that tells it from the others."""
    drawings = mini.drawings
    return {
        (c.key, s): drawings.Drawing(c, s, np.full((64, 64, 3), n % 200, np.uint8))
        for n, c in enumerate(concepts)
        for s in drawings.STYLES
    }


def test_an_unseen_concept_is_in_no_training_split(mini: Any, concepts: list[Any], table: Any) -> None:
    unseen = [c for c in concepts if c.unseen]
    assert 0.1 < len(unseen) / len(concepts) < 0.16  # of all but flags, one in seven
    assert not any(c.group == "flags" for c in unseen)
    splits = {split: list(mini.drawings.of_split(table.values(), split)) for split in mini.drawings.SPLITS}
    assert sum(map(len, splits.values())) == len(table)
    assert not any(d.concept.unseen or d.style == "openmoji" for d in splits["train"])
    assert all(d.concept.unseen for d in splits["heldout-concepts"] + splits["heldout-both"])
    for _, talk in mini.conversations.make_grids(concepts, table, 60):
        assert not any(c.name == a.answer for c in unseen for a in talk.asked)


def test_grids_show_what_they_say(mini: Any, concepts: list[Any], table: Any) -> None:
    grids = mini.conversations.make_grids(concepts, table, 60)
    for grid, talk in grids:
        names = Counter(cell.name for cell in grid.cells if cell)
        for asked in talk.asked:
            if asked.question.startswith("How many of these: "):
                assert asked.answer == str(names[asked.question.removeprefix("How many of these: ").rstrip("?")])
            elif asked.question.startswith("Is there"):
                assert (asked.answer == "yes") == any(f" {name} in" in asked.question for name in names)
            elif asked.question.startswith("Where"):
                at = mini.grids.PLACES.index(asked.answer)
                assert grid.cells[at].name in asked.question
        corner = grid.pixels[10, 10]
        if grid.cells[0] is not None:
            assert corner.tolist() == table[grid.cells[0].key, grid.style].pixels[0, 0].tolist()
        else:
            assert corner.tolist() == [255, 255, 255]
    assert grids[1][0].caption.startswith(f"top left: {grids[1][0].cells[0].name}. top right: ")


def test_tasks_are_read_by_evaluate_and_are_balanced(mini: Any, concepts: list[Any], table: Any, tmp_path: Path) -> None:
    build = importlib.import_module("build") if "build" not in sys.modules else sys.modules["build"]
    try:
        forms = build.TASKS
    finally:
        del sys.modules["build"]
    tasks = mini.visual_tasks.make_visual_tasks(concepts, table)
    assert set(tasks.records) == {"name", "category", "presence", "count", "colour", "position"}
    shown = set(tasks.drawings) | {grid.name for grid in tasks.grids}
    assert not any(d.split == "train" for d in tasks.drawings.values())
    for name, records in tasks.records.items():
        form, more = forms[name]
        mini.writing.write_lines(tmp_path / f"{name}.jsonl", records)
        lines = f"form: {form}\ndata: {name}.jsonl\npictures: pictures.tar\n{more}\n"
        (tmp_path / f"{name}.yaml").write_text(lines, encoding="utf-8")
        questions = read_questions(load_task(tmp_path / f"{name}.yaml"))
        assert len(questions) == len(records)
        assert {question.picture for question in questions} <= shown
        most = Counter(question.gold for question in questions).most_common(1)[0][1] / len(questions)
        chance = 1 / len(questions[0].choices)
        # what is always answered alike gains little: colours of these concepts are three of nine
        assert most < (0.6 if name == "colour" else chance + 0.12), name
    again = mini.visual_tasks.make_visual_tasks(concepts, table)
    assert again.records == tasks.records


def test_presence_asks_of_both_kinds(mini: Any, concepts: list[Any], table: Any) -> None:
    tasks = mini.visual_tasks.make_visual_tasks(concepts, table)
    cells = {grid.name: {cell.name for cell in grid.cells if cell} for grid in tasks.grids}
    for record in tasks.records["presence"]:
        there = any(f" {name} in" in str(record["text"]) for name in cells[str(record["image"])])
        assert there == (record["label"] == "yes")
    kinds = Counter((r["label"], r["category"]) for r in tasks.records["presence"])
    assert all(kinds[label, kind] > 50 for label in ("yes", "no") for kind in ("random", "adversarial"))


def test_definitions_have_four_different_meanings_of_one_domain(mini: Any) -> None:
    gloss = mini.wordnet.Gloss
    glosses = [gloss("noun", n % 2, (f"word{n}",), f'meaning {n}; "an example"') for n in range(60)]
    asked = mini.wordnet.definitions(glosses, {f"word{n}" for n in range(40)})
    assert len(asked) == 40
    for record in asked:
        number = int(str(record["word"]).removeprefix("word"))
        choices = record["choices"]
        assert choices[record["gold"]] == f"meaning {number}"
        assert len(set(choices)) == 4
        assert {int(c.split()[1]) % 2 for c in choices} == {number % 2}


def test_text_tasks_come_from_held_out_documents_alone(mini: Any) -> None:
    rng = random.Random(0)
    said = "when the old ship came into harbour every sailor stood silent upon deck waiting for orders"
    words = said.split()

    def text() -> str:
        return " ".join(" ".join(rng.sample(words, 12)).capitalize() + "." for _ in range(60))

    documents = [mini.prose.Document("moby-dick", f"chapter_{n}.txt", text()) for n in range(200)]
    held_out = " ".join(d.text for d in documents if d.held_out)
    assert held_out
    following = mini.text_tasks.next_sentences(documents)
    assert following
    for record in following:
        assert f"{record['query']} {record['choices'][record['gold']]}" in held_out
    swaps = mini.text_tasks.word_swaps(documents)
    for record in swaps:
        right, wrong = (record["choices"][record["gold"]], record["choices"][1 - record["gold"]])
        assert f"{record['query']} {right}" in held_out
        assert Counter(right.split()) == Counter(wrong.split())
        assert right != wrong


def test_a_conversation_is_a_question_and_its_answer(mini: Any, concepts: list[Any], table: Any) -> None:
    talk = mini.conversations.about_drawings([table[c.key, "noto"] for c in concepts], 50)
    record = talk[0].llava(3)
    assert record["id"] == "3"
    assert record["conversations"][0]["value"].startswith("<image>W")
    assert [turn["from"] for turn in record["conversations"][:2]] == ["human", "gpt"]
    template = load_template(str(HERE / "template.yaml"))
    assert template.assistant.learnt
    assert [(piece.text, piece.learnt) for piece in (*template.assistant.prefix, *template.assistant.suffix)] == [
        (" ", True),
        ("\n", True),
    ]


def test_the_study_asks_for_every_point_under_two_policies_and_seeds() -> None:
    study = read_study(HERE / "study.yaml")
    assert study.axes["introduction"] == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert len(study.axes["seed"]) == 2
    assert len(study.axes["lr_policy"]) == 2
    raw = parse_yaml((HERE / "study.yaml").read_text(encoding="utf-8"), "study.yaml")
    made = [*raw["base"]["data"]["sources"].values(), *raw["base"]["data"]["validation"].values()]
    script = (HERE / "run.sh").read_text(encoding="utf-8")
    for prefix in made:
        name = Path(prefix).name
        assert f" {name} --input" in script or f'--output "$made/{name}"' in script, prefix


def test_a_missing_package_is_named(mini: Any, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"openmoji is not there; run without --no-fetch"):
        mini.sources.OPENMOJI.locate(tmp_path)


def test_an_svg_is_drawn_on_white(mini: Any) -> None:
    pytest.importorskip("resvg_py")
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 1"><rect width="1" height="1" fill="#ff0000"/></svg>'
    pixels = mini.drawings.on_white(mini.drawings.render_svg(svg))
    assert pixels.shape == (64, 64, 3)
    assert pixels[32, 10].tolist() == [255, 0, 0]
    assert pixels[32, 50].tolist() == [255, 255, 255]
    assert pixels[2, 10].tolist() == [255, 255, 255]


def test_yaml_of_the_template_is_whole() -> None:
    assert set(yaml.safe_load((HERE / "template.yaml").read_text(encoding="utf-8"))) == {"name", "user", "assistant"}
    assert json.dumps(load_template(str(HERE / "template.yaml")).to_map())
