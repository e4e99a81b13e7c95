"""The right reader for a name, with settings as a person gives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_vlm.data.records import Record
from megatron_vlm.data.sources.chat_template import BUILT_IN
from megatron_vlm.data.sources.choose_documents import conversation_source, interleaved_source
from megatron_vlm.data.sources.interleaved import BeyondLimit, InterleavedSource, MissingPicture
from megatron_vlm.data.sources.picture_store import FolderPictures, PictureNaming
from megatron_vlm.errors import ConfigError, DataError

NAMES = ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz", "a.json.zst", "A.JSONL.XZ", "a.json.bz2", "s3://b/a.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_known(name: str) -> None:
    assert conversation_source(name).template is BUILT_IN["plain"]
    assert interleaved_source(name) == InterleavedSource()


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.zip", "a.tar", "a", "a.parquet.gz"])
def test_names_that_are_not(name: str) -> None:
    for source in (conversation_source, interleaved_source):
        with pytest.raises(DataError, match=f"^{name}: "):
            source(name)


def test_settings_as_words(tmp_path: Path) -> None:
    source = interleaved_source(
        "a.jsonl", pictures=str(tmp_path), naming="url_sha256", missing="reject", beyond="cut", max_pictures=3
    )
    assert source == InterleavedSource(
        FolderPictures(str(tmp_path)),
        PictureNaming.URL_SHA256,
        missing=MissingPicture.REJECT,
        beyond=BeyondLimit.CUT,
        max_pictures=3,
    )
    chatty = conversation_source(
        "a.json", pictures=FolderPictures("x"), template="chatml", placeholder="[I]", max_pictures=2
    )
    assert (chatty.template, chatty.placeholder, chatty.max_pictures) == (BUILT_IN["chatml"], "[I]", 2)
    for setting in ("naming", "missing", "beyond"):
        with pytest.raises(ConfigError, match=f"{setting}: 'odd' is not known; known: "):
            interleaved_source("a.jsonl", **{setting: "odd"})
    with pytest.raises(ConfigError, match="did you mean 'llama3'"):
        conversation_source("a.json", template="llama")


def test_from_a_name_to_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    path = tmp_path / "a.json"
    turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "it"}]
    path.write_text(json.dumps([{"id": "k", "image": "a.jpg", "conversations": turns}]))
    source = conversation_source(str(path), pictures=str(tmp_path), template="llava_v1")
    (unit,) = source.units(str(path), path.stat().st_size, 1)
    (record,) = source.read(unit)
    assert isinstance(record, Record)
    assert record.key == "k"
    assert len(record.documents[0]) == 5
