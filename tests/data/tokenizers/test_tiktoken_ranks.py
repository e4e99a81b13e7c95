"""Ids are tiktoken's own for each known way to split text, and gigatoken's are the same."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken_ext.openai_public as public
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.data.tokenizers.check_texts import check_texts
from megatron_vlm.errors import DataError

NAMES = ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"]
END = {"r50k_base": 50256, "p50k_base": 50256, "cl100k_base": 100257, "o200k_base": 199999}
TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \r\n'sStTlL0189")))


def theirs(name: str, ranks: dict[bytes, int], monkeypatch: pytest.MonkeyPatch) -> Any:
    """tiktoken's own definition of an encoding, with our ranks in the place of those that it would download."""
    monkeypatch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: ranks)
    said = public.ENCODING_CONSTRUCTORS[name]()
    return tiktoken.Encoding(name, pat_str=said["pat_str"], mergeable_ranks=ranks, special_tokens=said["special_tokens"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["tokenizers", "gigatoken"])
def test_ids_are_the_librarys(
    name: str,
    backend: str,
    ranks: dict[bytes, int],
    rank_file: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / f"{name}.tiktoken").write_bytes(rank_file)
    ours = Tokenizer.load(tmp_path / f"{name}.tiktoken", backend=backend)  # type: ignore[arg-type]
    library = theirs(name, ranks, monkeypatch)
    texts = list(check_texts())
    expected = [library.encode(text, disallowed_special=()) for text in texts]
    assert [ours.encode(text) for text in texts] == expected == ours.encode_batch(texts)
    for parallel in (False, True):
        flat, offsets = ours.encode_flat(texts, parallel=parallel)
        assert [flat[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)] == expected
    assert ours.special_id("<|endoftext|>") == ours.eod_id == END[name] == library.eot_token
    assert (ours.image_token_id, ours.pad_id, ours.vocab_size) == (library.n_vocab, library.n_vocab + 1, library.n_vocab + 2)
    assert ours.decode([*ours.encode("é🙂"), ours.eod_id, ours.image_token_id]) == "é🙂<|endoftext|><image>"


@given(text=TEXT)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@pytest.mark.parametrize("pattern", ["r50k", "cl100k", "o200k", "qwen"])
def test_gigatoken_gives_the_same_ids(text: str, pattern: str, rank_file: bytes, tmp_path: Path) -> None:
    if pattern not in _OPENED:
        (tmp_path / "x.tiktoken").write_bytes(rank_file)
        _OPENED[pattern] = Tokenizer.load(tmp_path / "x.tiktoken", pattern=pattern, backend="gigatoken")
    ours = _OPENED[pattern]
    assert ours.encode_flat([text])[0].tolist() == ours.encode(text)
    assert ours.decode(ours.encode(text)) == text


_OPENED: dict[str, Tokenizer] = {}


def test_the_pattern_must_be_known_and_can_be_said(rank_file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"  # as Llama 3's is called
    path.write_bytes(rank_file)
    with pytest.raises(DataError, match=r"tokenizer\.model: a tiktoken rank file does not say .* give pattern="):
        Tokenizer.load(path)
    by_argument = Tokenizer.load(path, pattern="cl100k", special_tokens={"<|end_of_text|>": 2000, "<|eot_id|>": 2001})
    assert (by_argument.eod_id, by_argument.image_token_id, by_argument.pad_id) == (2000, 2002, 2003)
    assert by_argument.special_names.eod == "<|end_of_text|>"
    assert by_argument.special_id("<|eot_id|>") == 2001
    said = {"pattern": "cl100k", "special_tokens": {"<|end_of_text|>": 2000, "<|eot_id|>": 2001}}
    (tmp_path / "tokenizer_settings.json").write_text(json.dumps(said))
    assert Tokenizer.load(tmp_path).description() == by_argument.description()
    assert Tokenizer.load(path, pattern="o200k").fingerprint != by_argument.fingerprint
    lone = Tokenizer.load(path, pattern=r"[a-z]+|[^a-z]+")
    assert lone.encode("the the") == [*lone.encode("the"), *lone.encode(" "), *lone.encode("the")]
    with pytest.warns(RuntimeWarning, match="does not know the pattern"):
        assert lone.encode_flat(["the the"])[0].tolist() == lone.encode("the the")


def test_saving_and_pickling_keep_everything(rank_file: bytes, tmp_path: Path) -> None:
    (tmp_path / "o200k_base.tiktoken").write_bytes(rank_file)
    ours = Tokenizer.load(tmp_path / "o200k_base.tiktoken", pad="<|endofprompt|>")
    saved = ours.save(tmp_path / "t")
    assert saved.name == "tokenizer.tiktoken"
    for copy in (Tokenizer.load(saved), Tokenizer.load(tmp_path / "t"), pickle.loads(pickle.dumps(ours))):
        assert copy.description() == ours.description()
        assert copy.encode("The 12345 <|endofprompt|>") == ours.encode("The 12345 <|endofprompt|>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a tiktoken rank file"),
        (b"{}", "is not a tiktoken rank file"),
        (b"YQ== 0\n", "lacks some of the 256 single bytes"),
        (b"YQ== 0\nYg== x\n", "line 2: not a tiktoken rank file"),
        (b"YQ== 0\nYg== 0\n", "two tokens have the same id"),
    ],
)
def test_what_is_no_rank_file_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "cl100k_base.tiktoken").write_bytes(content)
    with pytest.raises(DataError, match=rf"cl100k_base\.tiktoken.*{message}"):
        Tokenizer.load(tmp_path)


def test_settings_that_do_not_fit_are_refused(rank_file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_bytes(rank_file)
    with pytest.raises(DataError, match="two tokens have the same id"):
        Tokenizer.load(path, pattern="r50k", special_tokens={"<|endoftext|>": 5})
    with pytest.raises(DataError, match="no regular expression"):
        Tokenizer.load(path, pattern="(")
    with pytest.raises(DataError, match="must give each name an id"):
        Tokenizer.load(path, pattern="r50k", special_tokens={"<|endoftext|>": "x"})  # type: ignore[dict-item]
