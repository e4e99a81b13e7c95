"""Folders as transformers reads them, special tokens that models have among their words, and GPT-2's own files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.data.tokenizers.check_texts import check_texts
from megatron_vlm.errors import DataError

from .conftest import SAMPLE

TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \r\n'sl<|>a")))
SPELT = st.lists(st.one_of(TEXT, st.sampled_from(["<|endoftext|>", "<image>", "<|pad|>", "<tool>"]))).map("".join)
BUNDLED = SAMPLE / "tokenizer" / "tokenizer.json"


@pytest.fixture(scope="module")
def chat() -> dict[str, Any]:
    """The bundled tokenizer as a chat model has it: more special tokens, one added token that is text, and gaps in ids."""
    backend = tokenizers.Tokenizer.from_file(str(BUNDLED))
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    made: dict[str, Any] = json.loads(backend.to_str())
    return made


def write(folder: Path, definition: dict[str, Any], **files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_folder_reads_as_transformers_reads_it(chat: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = 1 + max(token["id"] for token in chat["added_tokens"])
    late = {str(size): {"content": "<late>", "special": True}, str(size + 1): {"content": "<said>", "special": False}}
    kept = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in chat["added_tokens"]}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<late>",
        "added_tokens_decoder": kept | late,
    }
    folder = write(tmp_path / "t", chat, tokenizer_config=config)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder), split_special_tokens=True)
    ours = Tokenizer.load(folder)
    texts = [*check_texts(), "a<tool>b <said>c", "<late> <|im_start|>"]
    expected = [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert [ours.encode(text) for text in texts] == expected
    assert ours.special_id("<late>") == theirs.convert_tokens_to_ids("<late>") == size
    assert ours.vocab_size == size + 2 == len(theirs)
    flat, offsets = ours.encode_flat(texts)
    assert [flat[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)] == expected
    saved = Tokenizer.load(ours.save(tmp_path / "saved"))
    assert saved.description() == ours.description() == Tokenizer.load(folder / "tokenizer.json").description()


def test_what_the_config_names_is_tried_after_the_usual_names(chat: dict[str, Any], tmp_path: Path) -> None:
    definition = json.loads(json.dumps(chat).replace("<|endoftext|>", "<|fin|>").replace("<|pad|>", "<|fill|>"))
    bare = Tokenizer.load(write(tmp_path / "bare", definition))
    assert bare.special_names == ("<|im_end|>", "<image>", "<|pad|>")
    special = {"eos_token": "<|fin|>", "pad_token": {"content": "<|fill|>"}}
    definition = json.loads(json.dumps(definition).replace("<|im_end|>", "<|turn|>"))
    mapped = Tokenizer.load(write(tmp_path / "mapped", definition, special_tokens_map=special))
    assert (mapped.special_names, mapped.eod_id, mapped.pad_id) == (("<|fin|>", "<image>", "<|fill|>"), 0, 2)
    both = {"eos_token": "<|fin|>", "pad_token": "<|fin|>"}
    apart = Tokenizer.load(write(tmp_path / "both", definition, tokenizer_config=both))
    assert (apart.special_names.pad, apart.pad_id) == ("<|pad|>", apart.vocab_size - 1), "the end of a document is learnt"


@given(text=SPELT)
@settings(deadline=None)
def test_gigatoken_gives_the_same_ids(text: str, chat: dict[str, Any]) -> None:
    if "chat" not in _OPENED:
        _OPENED["chat"] = Tokenizer(json.dumps(chat), backend="gigatoken")
    ours = _OPENED["chat"]
    ids = ours.encode(text)
    assert ours.encode_flat([text, "", text])[0].tolist() == ids + ids
    assert not {ours.eod_id, ours.image_token_id, ours.pad_id} & set(ids)
    assert ours.decode(ids) == text


_OPENED: dict[str, Tokenizer] = {}


def llama() -> tokenizers.Tokenizer:
    """As converters make them of SentencePiece models: "</s>" is a word of the model, and merges lead to it."""
    words = ["<unk>", "<s>", "</s>", *"▁ab</s>", "</", "s>", "▁a"]
    words = list(dict.fromkeys(words))
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("▁", "a")]
    made = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def t5() -> tokenizers.Tokenizer:
    """A unigram model whose lattice has "</s>" as a word like others."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -5.0) for c in "▁ab</s>"), ("▁a", -2.0), ("</", -4.0)]
    made = tokenizers.Tokenizer(models.Unigram(words, 2, False))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return made


@pytest.mark.parametrize("make", [llama, t5])
def test_words_that_are_special_tokens_are_taken_out(make: Any) -> None:
    theirs = make()
    theirs.encode_special_tokens = True
    forged = theirs.token_to_id("</s>")
    assert forged in theirs.encode("a</s>b").ids, "the library itself takes the text for the token"
    ours = Tokenizer(theirs.to_str(), backend="tokenizers")
    assert ours.special_names[0] == "</s>"
    assert ours.eod_id == forged
    for text in ("</s>", "a</s>b", "a </s> b", "<s></s></s>", "<pad>"):
        ids = ours.encode(text)
        assert not {theirs.token_to_id(name) for name in ("<s>", "</s>", "<pad>")} & set(ids)
        assert ours.encode_flat([text])[0].tolist() == ids
    assert "</s>" in ours.decode(ours.encode("a</s>b"))
    assert ours.encode("ab a") == theirs.encode("ab a").ids
    assert ours.decode([*ours.encode("a"), ours.eod_id]).endswith("</s>")
    copy = pickle.loads(pickle.dumps(ours))
    assert copy.encode("a</s>b") == ours.encode("a</s>b")


def test_tokens_added_after_those_that_are_taken_out_keep_their_ids() -> None:
    theirs = llama()
    theirs.add_special_tokens(["<new>"])
    theirs.add_tokens([AddedToken("<said>", normalized=False)])
    ours = Tokenizer(theirs.to_str(), backend="tokenizers")
    assert theirs.token_to_id("<said>") in ours.encode("a<said>b")
    assert not {ours.special_id("<new>"), ours.eod_id, ours.image_token_id} & set(ours.encode("<new></s><image>"))
    assert ours.vocab_size == theirs.get_vocab_size() + 2


def test_gpt2s_own_files(tmp_path: Path) -> None:
    reference = tokenizers.Tokenizer.from_file(str(BUNDLED))
    reference.model.save(str(tmp_path))
    ours = Tokenizer.load(tmp_path)
    texts, bundled = list(check_texts()), Tokenizer.load(BUNDLED)
    assert [ours.encode(text) for text in texts] == [bundled.encode(text) for text in texts]
    assert ours.eod_id == 0
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    with pytest.raises(DataError, match=r"vocab\.json: a Qwen2Tokenizer splits text in its own way.*save_pretrained"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "merges.txt").write_text("#version: 0.2\nnone such\n")
    with pytest.raises(DataError, match=r"vocab\.json and merges\.txt are no vocabulary"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "content", ['{"model": {}}', '{"model": {"vocab": [1]}}', '{"model": {"vocab": {}}, "added_tokens": [{}]}']
)
def test_what_is_no_tokenizer_is_refused(content: str) -> None:
    with pytest.raises(DataError, match="is not a Hugging Face tokenizer.json"):
        Tokenizer(content)


def test_files_beside_it_that_cannot_be_read_are_named(chat: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "t", chat)
    for content, message in (("[", "cannot be read as JSON"), ("[]", "is not a JSON object")):
        (folder / "tokenizer_config.json").write_text(content)
        with pytest.raises(DataError, match=rf"tokenizer_config\.json {message}"):
            Tokenizer.load(folder)
    (folder / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"x": 1}}')
    with pytest.raises(DataError, match=r"tokenizer_config\.json beside it do not fit"):
        Tokenizer.load(folder)
