"""Texts come out of every kind of file, and what cannot be used is counted. What is learnt of them: test_tokenizer.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from megatron_vlm.data.captions import CaptionChoice
from megatron_vlm.data.records import Record, Text, Unit
from megatron_vlm.data.sources.choose import image_text_source, text_source
from megatron_vlm.data.sources.opening import InputFile, expand_inputs
from megatron_vlm.data.tokenizer_training import TrainingTexts, train_bpe
from megatron_vlm.errors import DataError

MakeTar = Callable[[str, Sequence[tuple[str, bytes]]], Path]


def test_texts_of_documents_and_captions(tmp_path: Path, make_tar: MakeTar) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"body": "x"}\n{"text": "two"}\n')
    tar = make_tar("b.tar", [("1.png", b"P"), ("1.json", b'{"caption": ["three", "four"]}'), ("2.png", b"P")])
    text, pictures = expand_inputs([str(tmp_path / "a.jsonl"), str(tar)])
    texts = TrainingTexts(
        [(text, text_source(text.url)), (pictures, image_text_source(pictures.url, choice=CaptionChoice.ALL))]
    )
    for _ in range(2):
        assert list(texts) == ["one", "two", "three", "four"]
        assert (texts.texts, texts.rejected) == (4, 2)
    assert train_bpe(texts, 300).decode(train_bpe(texts, 300).encode("one two")) == "one two"


class Conversation:
    """A source whose documents have turns."""

    def units(self, url: str, size: int, target: int) -> Sequence[Unit]:
        return [Unit(url, 0, 1, size)]

    def read(self, unit: Unit) -> list[Record]:
        turns = (Text("<|user|>", learnt=False, special=True), Text("why?", learnt=False), Text("because"))
        return [Record("", 0, (turns,), 0, 0)]


def test_what_is_only_read_counts_and_special_tokens_do_not() -> None:
    assert list(TrainingTexts([(InputFile("x", 0, ""), Conversation())])) == ["why?", "because"]  # type: ignore[list-item]


def test_files_without_a_usable_record_train_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{\n")
    (file,) = expand_inputs([str(tmp_path / "a.jsonl")])
    texts = TrainingTexts([(file, text_source(file.url))])
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train_bpe(texts, 300)
    assert texts.rejected == 1
