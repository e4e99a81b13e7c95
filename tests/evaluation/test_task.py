"""A task's file: what is filled in, and what is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vlm.errors import ConfigError
from megatron_vlm.evaluation.task import load_task


def _write(folder: Path, text: str) -> Path:
    path = folder / "hellaswag.yaml"
    path.write_text(text)
    return path


def test_the_name_is_the_files_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    task = load_task(_write(tmp_path, "form: multiple_choice\ndata: sets/h.jsonl\nfew_shot: 5\nchance: 0.25\n"))
    assert (task.name, task.data, task.few_shot) == ("hellaswag", str(tmp_path / "sets/h.jsonl"), 5)
    assert (task.measured_by, task.by_likelihood, task.shows_pictures) == ("accuracy", True, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("form: multiple_choice", "data must be given"),
        ("data: x", "form must be given"),
        ("form: multiple_choise\ndata: x", "did you mean 'multiple_choice'"),
        ("form: schema\ndata: x\nfewshot: 5", "did you mean 'few_shot'"),
        ("form: vqa\ndata: x\npictures: p", "needs `annotations`"),
        ("form: pope\ndata: x", "needs `pictures`"),
        ("form: vqa\ndata: x\nannotations: a\npictures: p\nby: likelihood", "offers no choices"),
        ("form: open\ndata: x\nmetric: box", "measured by exact or number or vqa or yes_no, not by box"),
        ("form: schema\ndata: x\nchance: 1.0", "chance is 1"),
        ("form: grounding\ndata: x\npictures: p\nbox_scale: 0", "box_scale is 0, but must be above 0"),
        ("- a list", "expected a map"),
        ("form: [", "not valid YAML"),
    ],
)
def test_refusals_name_the_file_and_the_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match="hellaswag.yaml") as refused:
        load_task(_write(tmp_path, text))
    assert said in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_task(tmp_path / "none.yaml")
