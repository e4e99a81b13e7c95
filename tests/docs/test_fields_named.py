"""Fields that the documentation names in running text exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.config.loading import to_map
from megatron_vlm.config.run import RunConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md"])
#: what ends the name of a file
FILES = ("py", "md", "json", "jsonl", "yaml")
SECTIONS = {field.name for field in dataclasses.fields(RunConfig)}


def _exists(path: list[str], known: Any) -> bool:
    for part in path:
        if isinstance(known, list) and part.isdigit():  # a stage, by its number
            known = known[0]
            continue
        if not isinstance(known, dict):
            return False
        if part not in known:
            # maps of names, such as data.sources, and what is null by default, take any key
            return not known or set(known) <= {"language", "vision", "projector"}
        known = known[part]
        if known is None:
            return True
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fields_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    known = to_map(RunConfig())
    for code in re.findall(r"`(?:--)?([a-z_]+(?:\.[a-z0-9_]+)+)(?=[ :`=])", text):
        section, *rest = code.split(".")
        if section in SECTIONS and rest[-1] not in FILES:
            assert _exists([section, *rest], known), f"{page.name}: {code}"
