"""Prompts out of a file, with the pictures that they name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_vlm.config.loading import load_config
from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.prompt_file import prompts_of, read_prompts


def _file(folder: Path, *records: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


class _Generator:
    """Says how many pictures a prompt has."""

    def prompt(self, text: str, pictures: Any, count: int) -> int:
        return count


def test_one_picture_or_several(tmp_path: Path) -> None:
    shown = ({}, {"image": "a"}, {"images": ["a", "b"]}, {"image": "a", "images": []}, {"image": "", "images": ["a"]})
    records = read_prompts(_file(tmp_path, *({"prompt": "p", **fields} for fields in shown)))
    scorer: Any = SimpleNamespace(config=load_config(preset="tiny"), decodes=False)
    generator: Any = _Generator()
    assert prompts_of(scorer, generator, records, "") == [0, 1, 2, 1, 1]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": 3}, "record 1: 'prompt' must be a text"),
        ({"images": "a"}, "record 1: 'prompt' must be a text, and 'images' a list of names"),
        ({"image": "a", "images": ["b"]}, "record 1: has both 'image' and 'images'; put all names into 'images'"),
    ],
)
def test_a_record_that_is_wrong_is_named(tmp_path: Path, record: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"prompts\.jsonl, {said}"):
        read_prompts(_file(tmp_path, {"prompt": "p"}, record))


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prompt"):
        read_prompts(_file(tmp_path))
    with pytest.raises(DataError, match="no such file"):
        read_prompts(tmp_path / "other.jsonl")
