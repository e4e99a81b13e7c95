"""The documentation builds as a site without a warning, every page is in its menu, and generated pages are current."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_menu_and_built(site: Path) -> None:
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = [page for entry in menu for page in ([entry] if isinstance(entry, str) else next(iter(entry.values())))]
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert set(named) == pages
    assert len(named) == len(pages)
    for page in pages:
        assert (site / page.replace(".md", ".html")).is_file()


def test_nothing_of_the_site_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        for tag in ('<script src="http', '<link rel="stylesheet" href="http', '<img src="http'):
            assert tag not in text, page.name


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return load_script(ROOT / "docs" / "generate_cli.py")


def test_the_reference_of_commands_is_current(generator: ModuleType) -> None:
    """If it is not: python docs/generate_cli.py"""
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == generator.page()


def test_sub_commands_and_defaults_are_in_it(generator: ModuleType) -> None:
    text = generator.page()
    assert "### megatron-vlm study plan" in text
    assert "| `--jobs N` | segments at once (default: 1) |" in text
    assert "%(" not in text
