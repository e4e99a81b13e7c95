"""The diagrams are those that their script draws, and every page that shows one finds it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from tests.docs.documented import ROOT
from tests.scripts import load_script

DOCS = ROOT / "docs"


def test_the_files_are_what_the_script_draws() -> None:
    script = load_script(DOCS / "draw_diagrams.py")
    assert {path.name for path in (DOCS / "diagrams").iterdir()} == set(script.DIAGRAMS)
    for name, draw in script.DIAGRAMS.items():
        drawn = draw()
        assert (DOCS / "diagrams" / name).read_text(encoding="utf-8") == drawn, "python docs/draw_diagrams.py"
        assert ElementTree.fromstring(drawn).find("{http://www.w3.org/2000/svg}title") is not None


def test_pictures_of_pages_exist() -> None:
    shown = [(page, link) for page in DOCS.rglob("*.md") for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text())]
    assert len(shown) >= 2
    assert [(page, link) for page, link in shown if not (page.parent / link).is_file()] == []
