"""docs/configuration.md says what the dataclasses say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

import pytest

from megatron_vlm.config.bookkeeping import CheckpointConfig
from megatron_vlm.config.curriculum import StageConfig
from megatron_vlm.config.loading import to_map
from megatron_vlm.config.run import RunConfig
from tests.scripts import load_script

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return load_script(DOCS / "generate_configuration.py")


def test_the_committed_file_is_current(generator: ModuleType) -> None:
    committed = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert committed == generator.render(), "run python docs/generate_configuration.py"


def test_every_field_has_its_row(generator: ModuleType) -> None:
    tables = {part.split("\n")[0]: part for part in generator.render().split("\n## ")}

    def look(path: str, values: dict[str, object]) -> int:
        found = 0
        for name, value in values.items():
            inner = f"{path}.{name}" if path else name
            if isinstance(value, dict) and value:
                found += look(inner, value)
            elif inner != "curriculum.stages":
                assert f"| `{name}` |" in tables[path], inner
                found += 1
        return found

    assert look("", to_map(RunConfig())) > 60
    stage = {field.name: None for field in dataclasses.fields(StageConfig)}
    assert look("curriculum.stages.N", stage) == len(stage)


def test_comments_of_several_lines_are_joined(generator: ModuleType) -> None:
    comments = generator.field_comments(StageConfig)
    assert comments["sources"].startswith("source -> weight. tokens:")
    assert comments["sources"].endswith("in proportion to their weights")
    assert "name" not in comments
    assert generator.field_comments(CheckpointConfig)["keep_last"] == "checkpoints kept, newest first; 0: all"
