"""The messages that docs/troubleshooting.md explains are messages that the code can give."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
MESSAGES = re.findall(r"^### `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def texts(file: Path) -> list[str]:
    """Every string of a module; what is filled in at run time becomes a NUL, names of known constants their value."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    constants = {
        target.id: str(node.value.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(_part(part, constants) for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def _part(node: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
        return constants.get(node.value.id, "\0")
    return "\0"


@pytest.fixture(scope="module")
def all_texts() -> list[str]:
    return [text for file in sorted((ROOT / "megatron_vlm").rglob("*.py")) for text in texts(file)]


def appears(message: str, said: list[str]) -> bool:
    """Whether some text of the code is `message`, where `...` is anything."""
    return any(_holds(text, message.split("...")) for text in said)


def _holds(text: str, parts: list[str]) -> bool:
    at = 0
    for part in parts:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


@pytest.mark.parametrize("message", MESSAGES)
def test_message_exists(message: str, all_texts: list[str]) -> None:
    assert appears(message, all_texts)


def test_invented_messages_would_be_seen(all_texts: list[str]) -> None:
    assert len(MESSAGES) >= 20
    assert not appears("... already holds the checkpoints of a run", all_texts)
    assert not appears("this run cannot start: ... and never will", all_texts)
