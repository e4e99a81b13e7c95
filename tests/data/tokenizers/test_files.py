"""Which file of a folder is the tokenizer, and what is said when none is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import DataError

from .conftest import SAMPLE, MakeModel

BUNDLED = SAMPLE / "tokenizer" / "tokenizer.json"


def test_a_tokenizer_json_comes_first_and_a_lone_file_of_any_name_will_do(make_model: MakeModel, tmp_path: Path) -> None:
    shutil.copy(make_model(model_type="unigram"), tmp_path / "my_own.model")
    assert Tokenizer.load(tmp_path).description()["form"] == "sentencepiece"
    shutil.copy(BUNDLED, tmp_path)
    assert Tokenizer.load(tmp_path).description() == Tokenizer.load(BUNDLED).description()


def test_several_are_not_guessed_between(make_model: MakeModel, tmp_path: Path) -> None:
    for name in ("a.model", "b.model"):
        shutil.copy(make_model(model_type="unigram"), tmp_path / name)
    with pytest.raises(DataError, match=r"several tokenizers \(a\.model, b\.model\); name one"):
        Tokenizer.load(tmp_path)
    assert Tokenizer.load(tmp_path / "b.model").eod_id == 2


def test_none_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json does not exist; `megatron-vlm train-tokenizer`"):
        Tokenizer.load(tmp_path)
    with pytest.raises(DataError, match=r"no\.model does not exist"):
        Tokenizer.load(tmp_path / "no.model")


def test_settings_beside_it_are_kept_and_arguments_come_before_them(tmp_path: Path) -> None:
    shutil.copy(BUNDLED, tmp_path)
    (tmp_path / "tokenizer_settings.json").write_text(json.dumps({"image": "<picture>", "eod": "<fin>"}))
    tokenizer = Tokenizer.load(tmp_path, eod="<end>")
    assert tokenizer.special_names == ("<end>", "<picture>", "<|pad|>")
    again = Tokenizer.load(tokenizer.save(tmp_path / "again"))
    assert again.description() == tokenizer.description()
    Tokenizer.load(BUNDLED).save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").fingerprint == Tokenizer.load(BUNDLED).fingerprint, "nothing stays behind"
    (tmp_path / "tokenizer_settings.json").write_text('{"image": 5}')
    with pytest.raises(DataError, match="image must be a token's name, not 5"):
        Tokenizer.load(tmp_path)
