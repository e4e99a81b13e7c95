"""A tokenizer that is opened at once reads its definition once, and is the same as one that is opened bit by bit."""

from __future__ import annotations

import json
import pickle

import orjson
import pytest

from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.data.tokenizer_training import train_bpe
from megatron_vlm.data.tokenizers.hugging_face import HuggingFaceVocabulary

SENTENCES = ["the cat sat on the mat", "a dog ran to the other dog", "<|endoftext|> and <image> are text", "naïve façade"]


@pytest.fixture
def definition(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(iter(SENTENCES * 20), 400).save(folder)
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("marked", [True, False])
def test_the_same_as_one_that_is_opened_later(definition: str, marked: bool) -> None:
    parsed = json.loads(definition)
    for token in parsed["added_tokens"]:
        token["special"] = marked  # where they are not, the backend is of a text of its own
    text = json.dumps(parsed)
    later, at_once = Tokenizer(text), Tokenizer(text, at_once=True)
    assert at_once.fingerprint == later.fingerprint
    assert at_once.flat_backend == later.flat_backend == "gigatoken"
    for found, expected in zip(at_once.encode_flat(SENTENCES), later.encode_flat(SENTENCES), strict=True):
        assert found.tolist() == expected.tolist()
    assert pickle.loads(pickle.dumps(at_once)).fingerprint == later.fingerprint


def test_what_is_known_stays_as_it_was(definition: str) -> None:
    vocabulary = HuggingFaceVocabulary(definition, "x")
    backend = Tokenizer(definition)._backend
    backend.open_gigatoken(vocabulary)
    assert vocabulary.parsed == json.loads(definition)


def test_the_definition_is_read_once(definition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    loads = orjson.loads

    def counted(text: str) -> object:
        read.append(text)
        return loads(text)

    monkeypatch.setattr(orjson, "loads", counted)
    Tokenizer(definition, at_once=True)
    assert read.count(definition) == 1
    Tokenizer(definition).fingerprint  # noqa: B018
    assert read.count(definition) == 3
