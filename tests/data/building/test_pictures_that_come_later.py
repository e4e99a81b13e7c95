"""A run that goes on sees the pictures that have come since it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.data.building import build as building
from megatron_vlm.data.preprocess import (
    PreprocessSummary,
    preprocess_conversations,
    preprocess_image_text,
    preprocess_interleaved,
)
from megatron_vlm.data.tokenizer import Tokenizer

MakeTar = Callable[[str, Sequence[tuple[str, bytes]]], Path]
MakePicture = Callable[..., bytes]
Run = Callable[[Path], PreprocessSummary]
NEVER, LATER = "3.png", "6.png"
#: a record of each kind about some pictures; those of several, and of a picture that is always there, lose one in silence
RECORDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "captions": lambda name: {"image": name, "caption": "red"},
    "conversations": lambda name: {
        "image": name,
        "conversations": [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "red"}],
    },
    "interleaved": lambda name: {"images": ["0.png", None, name, None], "texts": [None, "red", None, "blue"]},
}


def run_of(kind: str, folder: Path, pictures: str, tokenizer: Tokenizer) -> Run:
    """Two files of four records about pictures 0 to 7."""
    for number in range(2):
        lines = [json.dumps(RECORDS[kind](f"{4 * number + k}.png")) for k in range(4)]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    inputs = [str(folder / "*.jsonl")]

    def run(output: Path) -> PreprocessSummary:
        if kind == "captions":
            return preprocess_image_text(inputs, output, tokenizer, image_folder=pictures)
        call = preprocess_conversations if kind == "conversations" else preprocess_interleaved
        return call(inputs, output, tokenizer, images=[pictures])

    return run


def interrupt(run: Run, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all parts are made."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(building, "_put_together", stop)
        with pytest.raises(KeyboardInterrupt):
            run(output)


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", list(RECORDS))
def test_a_part_is_made_again_when_a_picture_has_come_and_only_then(
    kind: str, tokenizer: Tokenizer, tmp_path: Path, make_picture: MakePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        (pictures / f"{number}.png").write_bytes(make_picture("PNG", 9 + number, 9))
    later = (pictures / LATER).read_bytes()
    for name in (NEVER, LATER):
        (pictures / name).unlink()
    run = run_of(kind, tmp_path, str(pictures), tokenizer)
    interrupt(run, tmp_path / "out" / "d", monkeypatch)
    interrupt(run, tmp_path / "out" / "d", monkeypatch)
    (pictures / LATER).write_bytes(later)
    summary = run(tmp_path / "out" / "d")
    assert (summary.result.again, summary.result.units) == (1, 2)  # what never comes is not waited for
    assert summary.totals()["images"] == (15 if kind == "interleaved" else 7)
    run(tmp_path / "whole" / "d")
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_parts_are_of_the_tars_that_they_were_made_with(
    tokenizer: Tokenizer, tmp_path: Path, make_tar: MakeTar, make_picture: MakePicture, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [(f"{number}.png", make_picture("PNG", 9 + number, 9)) for number in range(8)]
    tar = make_tar("pictures.tar", members[:6])
    run = run_of("conversations", tmp_path, str(tar), tokenizer)
    interrupt(run, tmp_path / "d", monkeypatch)
    make_tar("pictures.tar", members)
    summary = run(tmp_path / "d")
    assert (summary.result.again, summary.totals()["images"]) == (0, 8)
    interrupt(run, tmp_path / "d", monkeypatch)
    assert run(tmp_path / "d").result.again == 2
