"""Ids are sentencepiece's own, text spells no piece that is no text, and gigatoken stands in where it gives the same."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.data.tokenizers.check_texts import check_texts
from megatron_vlm.data.tokenizers.sentencepiece_model import as_control
from megatron_vlm.errors import DataError

from .conftest import MakeModel

LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "bpe, defaults": {"model_type": "bpe"},
    "unigram, defaults": {"model_type": "unigram"},
    "unigram, bytes": {"model_type": "unigram", "byte_fallback": True, "add_dummy_prefix": False},
    "user-defined": {**LLAMA, "user_defined_symbols": ["<|x|>", "\n"], "allow_whitespace_only_pieces": True},
}
TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \n▁<>|ae")))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_librarys(kind: str, make_model: MakeModel) -> None:
    path = make_model(**KINDS[kind])
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = Tokenizer.load(path, backend="tokenizers")
    texts = list(check_texts())
    expected = [theirs.encode(text) for text in texts]
    assert [ours.encode(text) for text in texts] == expected
    assert ours.encode_batch(texts) == expected
    for parallel in (False, True):
        flat, offsets = ours.encode_flat(texts, parallel=parallel)
        assert flat.dtype == np.uint32
        assert [flat[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)] == expected


@given(text=TEXT)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_gigatoken_gives_the_same_ids(text: str, make_model: MakeModel) -> None:
    theirs, ours = _pair(make_model(**LLAMA))
    assert ours.encode_flat([text, text])[0].tolist() == theirs.encode(text) * 2


_PAIRS: dict[Path, tuple[Any, Tokenizer]] = {}


def _pair(path: Path) -> tuple[Any, Tokenizer]:
    if path not in _PAIRS:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        _PAIRS[path] = (processor, Tokenizer.load(path, backend="gigatoken"))
    return _PAIRS[path]


def test_special_tokens_are_its_own_and_what_it_lacks_comes_after(make_model: MakeModel) -> None:
    ours = Tokenizer.load(make_model(**LLAMA))
    assert ours.special_names == ("</s>", "<image>", "<|pad|>")
    assert (ours.eod_id, ours.image_token_id, ours.pad_id, ours.vocab_size) == (2, 600, 601, 602)
    assert ours.special_id("<s>") == 1
    ids = ours.encode("one")
    assert ours.decode([1, *ids, 600, *ids, 2]) == "<s>one<image>one</s>"
    padded = Tokenizer.load(make_model(**LLAMA, pad_id=3))
    assert (padded.special_names.pad, padded.pad_id, padded.vocab_size) == ("<pad>", 3, 601)


@pytest.mark.parametrize("backend", ["tokenizers", "gigatoken"])
def test_no_text_spells_a_special_token(backend: str, make_model: MakeModel) -> None:
    path = make_model(**LLAMA, user_defined_symbols=["<image>", "<|x|>"])
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert 3 in library.encode("a<image>b"), "the library itself takes it for the piece"
    ours = Tokenizer.load(path, backend=backend)  # type: ignore[arg-type]
    assert ours.image_token_id == 3
    texts = ["a<image>b", "<image>", "</s>", "<s> </s>", "<unk>", "x <|pad|>"]
    ids = ours.encode_flat(texts)[0].tolist()
    assert not {1, 2, 3, ours.pad_id} & set(ids)
    assert ids == [i for text in texts for i in ours.encode(text)]
    assert 4 in ours.encode("a<|x|>b"), "other user-defined pieces stay as they are"


def test_only_the_kind_of_a_piece_changes(make_model: MakeModel) -> None:
    content = make_model(**LLAMA, user_defined_symbols=["<image>", "<|x|>"]).read_bytes()
    before = sentencepiece.SentencePieceProcessor(model_proto=content)
    after = sentencepiece.SentencePieceProcessor(model_proto=as_control(content, ["<image>"]))
    pieces = range(before.vocab_size())
    assert [after.id_to_piece(i) for i in pieces] == [before.id_to_piece(i) for i in pieces]
    assert [after.get_score(i) for i in pieces] == [before.get_score(i) for i in pieces]
    assert [i for i in pieces if after.is_control(i) != before.is_control(i)] == [3]
    assert as_control(content, ["none"]) == content


def test_saving_and_pickling_keep_everything(make_model: MakeModel, tmp_path: Path) -> None:
    ours = Tokenizer.load(make_model(**LLAMA), eod="<s>", image="<picture>")
    saved = ours.save(tmp_path / "t")
    assert saved == tmp_path / "t" / "tokenizer.model"
    for copy in (Tokenizer.load(saved), Tokenizer.load(tmp_path / "t"), pickle.loads(pickle.dumps(ours))):
        assert copy.description() == ours.description()
        assert copy.encode("a <picture>") == ours.encode("a <picture>")
    assert ours.fingerprint != Tokenizer.load(make_model(**LLAMA)).fingerprint


def test_tokens_that_files_beside_it_add(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(make_model(**LLAMA).read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"</s>": 2, "<image>": 600, "<pad>": 601, "<|im_start|>": 605}')
    ours = Tokenizer.load(tmp_path)
    assert (ours.eod_id, ours.image_token_id, ours.pad_id, ours.vocab_size) == (2, 600, 601, 606)
    assert ours.special_id("<|im_start|>") == 605
    assert max(ours.encode("<image><|im_start|>")) < 600
    assert ours.encode_flat(["<image>"])[0].tolist() == ours.encode("<image>")
    assert ours.flat_backend == "gigatoken"
    for copy in (Tokenizer.load(ours.save(tmp_path / "saved")), pickle.loads(pickle.dumps(ours))):
        assert (copy.description(), copy.special_id("<|im_start|>")) == (ours.description(), 605)
    config = {"added_tokens_decoder": {"600": {"content": "<|fim|>", "special": True}}, "eos_token": "<|fim|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    other = Tokenizer.load(tmp_path)
    assert (other.special_id("<|fim|>"), other.image_token_id) == (600, 601)
    assert other.special_names.eod == "</s>", "the usual names come first"
    (tmp_path / "added_tokens.json").write_text('{"<image>": 5}')
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="have ids that are taken"):
        Tokenizer.load(tmp_path)


def test_gigatoken_is_refused_where_it_differs(make_model: MakeModel) -> None:
    unigram = Tokenizer.load(make_model(model_type="unigram"))
    with pytest.warns(RuntimeWarning, match="gigatoken cannot be used: it cannot read this tokenizer"):
        flat, _ = unigram.encode_flat(["one"])
    assert flat.tolist() == unigram.encode("one")
    # it composes characters in another way than sentencepiece's NFKC
    other = Tokenizer.load(make_model(model_type="bpe", byte_fallback=True))
    with pytest.warns(RuntimeWarning, match="gives other ids for"):
        assert other.flat_backend == "sentencepiece"
    with pytest.raises(DataError, match="gigatoken cannot be used"):
        Tokenizer.load(make_model(model_type="unigram"), backend="gigatoken")


def test_what_is_no_model_is_refused_by_name(tmp_path: Path) -> None:
    for content in (b"", b"\x0a\xff", b"nothing of the kind", b"{}"):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(DataError, match=r"tokenizer\.model is not a SentencePiece model"):
            Tokenizer.load(tmp_path)
