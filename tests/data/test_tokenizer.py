"""Every text survives the tokenizer, data cannot spell special tokens, and foreign tokenizers are tamed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

from megatron_vlm.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from megatron_vlm.data.tokenizer_training import train_bpe
from megatron_vlm.errors import ConfigError, DataError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
BUNDLED = Path(__file__).parents[2] / "examples" / "sample_data" / "tokenizer"
SPELT = st.lists(st.one_of(TEXT, st.sampled_from(SPECIAL_TOKENS))).map("".join)


@pytest.fixture
def foreign() -> tokenizers.Tokenizer:
    """A word tokenizer as others make them: a BOS in front, padding and truncation on, no image token."""
    words = {"<unk>": 0, "a": 1, "b": 2, "<s>": 3, "<|endoftext|>": 4, "image": 5, "<": 6, ">": 7}
    made = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    made.add_special_tokens(["<s>"])
    made.add_tokens(["<|endoftext|>"])  # added, but not as a special token
    made.enable_padding(length=8)
    made.enable_truncation(3)
    return made


@given(text=SPELT)
def test_text_survives_and_never_becomes_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not {tokenizer.eod_id, tokenizer.image_token_id, tokenizer.pad_id} & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "", text]) == [ids, [], ids]


def test_special_ids(tokenizer: Tokenizer) -> None:
    assert (tokenizer.eod_id, tokenizer.image_token_id, tokenizer.pad_id) == (0, 1, 2)
    assert tokenizer.decode([0, 1, 2]) == "<|endoftext|><image><|pad|>"
    assert max(id for id in tokenizer.encode("a red square")) < tokenizer.vocab_size <= 300


def test_the_bundled_tokenizer_stays_what_it_is() -> None:
    """Datasets that were made with it say so by this fingerprint."""
    bundled = Tokenizer.load(BUNDLED)
    assert bundled.fingerprint == "d744a56672023e91cdb9213a3d069cf593d636cc25c42f18e4b130c8447da8c0"
    assert bundled.description() == {
        "form": "tokenizer.json",
        "fingerprint": bundled.fingerprint,
        "vocab_size": 4096,
        "special_tokens": {
            "eod": {"token": "<|endoftext|>", "id": 0},
            "image": {"token": "<image>", "id": 1},
            "pad": {"token": "<|pad|>", "id": 2},
        },
    }
    assert bundled.encode("a red square <image>") == [67, 2263, 2632, 551, 223, 30, 326, 600, 32]


def test_special_tokens_can_be_chosen_and_are_part_of_the_fingerprint(foreign: tokenizers.Tokenizer) -> None:
    definition = foreign.to_str()
    plain, spelt = Tokenizer(definition), Tokenizer(definition, eod="<|endoftext|>", image="<image>", pad="<|pad|>")
    assert plain.fingerprint == spelt.fingerprint
    chosen = Tokenizer(definition, eod="<s>", image="<picture>")
    assert (chosen.eod_id, chosen.image_token_id, chosen.pad_id) == (3, 8, 9)
    assert chosen.fingerprint != plain.fingerprint
    assert chosen.special_id("<s>") == 3
    assert pickle.loads(pickle.dumps(chosen)).description() == chosen.description()
    with pytest.raises(DataError, match=r"no special token '<pictures>'; it has '<picture>'"):
        chosen.special_id("<pictures>")
    with pytest.raises(DataError, match="must be three tokens"):
        Tokenizer(definition, pad="<|endoftext|>")
    with pytest.raises(DataError, match="'rust' is no backend"):
        Tokenizer(definition, backend="rust")  # type: ignore[arg-type]


@given(texts=st.lists(SPELT))
def test_flat_ids_are_those_of_each_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    flat, offsets = tokenizer.encode_flat(texts)
    assert flat.dtype == np.uint32
    assert offsets.dtype == np.int64
    assert [flat[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)] == tokenizer.encode_batch(texts)
    assert tokenizer.flat_backend == "gigatoken"


def test_saving_loading_and_pickling_keep_everything(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tokenizer.save(tmp_path / "t")
    assert path == tmp_path / "t" / "tokenizer.json"
    for copy in (Tokenizer.load(path), Tokenizer.load(tmp_path / "t"), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.fingerprint == tokenizer.fingerprint
        assert copy.vocab_size == tokenizer.vocab_size
        assert copy.encode("two <image> circles") == tokenizer.encode("two <image> circles")
    assert tokenizers.Tokenizer.from_file(str(path)).token_to_id("<image>") == 1


def test_fingerprint_is_of_the_meaning_and_not_of_the_layout(tokenizer: Tokenizer, tmp_path: Path) -> None:
    definition = json.loads(tokenizer.save(tmp_path).read_text())
    compact = json.dumps(dict(reversed(definition.items())))
    assert Tokenizer(compact).fingerprint == tokenizer.fingerprint
    definition["model"]["merges"].pop()
    assert Tokenizer(json.dumps(definition)).fingerprint != tokenizer.fingerprint


def test_a_foreign_tokenizer_adds_nothing_and_gains_what_it_lacks(foreign: tokenizers.Tokenizer) -> None:
    assert foreign.encode("a b a b").ids != [1, 2, 1, 2]  # as it is, it would truncate and add a BOS
    ours = Tokenizer(foreign.to_str())
    assert ours.encode("a b a b") == [1, 2, 1, 2]
    assert ours.encode_batch(["a", "a b a b"]) == [[1], [1, 2, 1, 2]]
    assert ours.eod_id == 4
    assert (ours.image_token_id, ours.pad_id, ours.vocab_size) == (8, 9, 10)
    assert ours.encode("a <image> b") == [1, 6, 5, 7, 2]
    assert 4 not in ours.encode("a <|endoftext|> b")


def test_a_vocabulary_that_lets_text_forge_a_special_token_is_refused() -> None:
    words = {"<unk>": 0, "<image>": 1}
    forged = tokenizers.Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    forged.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(DataError, match="'<image>' as an ordinary word"):
        Tokenizer(forged.to_str())


def test_what_is_no_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json does not exist; `megatron-vlm train-tokenizer`"):
        Tokenizer.load(tmp_path / "none.json")
    for content in (b"{}", b"[", b"[]", b"\xff"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(DataError, match=r"tokenizer\.json"):
            Tokenizer.load(tmp_path)


def test_training_depends_on_the_texts_and_not_on_their_order() -> None:
    texts = ["a red square", "a blue circle <image>", "two red circles", "naïve ☃"] * 3
    first = train_bpe(iter(texts), 290)
    assert train_bpe(iter(texts[::-1]), 290).fingerprint == first.fingerprint
    assert train_bpe(iter([*texts, "zzzz zzzz"]), 290).fingerprint != first.fingerprint


def test_training_refuses_what_cannot_work() -> None:
    with pytest.raises(ConfigError, match="at least 259"):
        train_bpe(iter(["a"]), 258)
    with pytest.raises(DataError, match="no text"):
        train_bpe(iter([]), 300)
    assert train_bpe(iter(["a"]), 259).vocab_size == 259
