"""A file's name chooses its reader, and a name that chooses none is told what would."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_vlm.data.captions import CaptionChoice
from megatron_vlm.data.records import Source
from megatron_vlm.data.sources.caption_rule import CaptionRule
from megatron_vlm.data.sources.choose import image_text_source, text_source
from megatron_vlm.data.sources.image_text_jsonl import ImageTextJsonl
from megatron_vlm.data.sources.image_text_parquet import ImageTextParquet
from megatron_vlm.data.sources.image_text_tar import ImageTextTar
from megatron_vlm.data.sources.json_lines import JsonLines
from megatron_vlm.data.sources.parquet_text import ParquetText
from megatron_vlm.data.sources.plain_text import PlainText
from megatron_vlm.data.sources.text_tar import TextTar
from megatron_vlm.errors import DataError

TEXT = [
    ("a.jsonl", JsonLines("body")),
    ("s3://b/c4-train.00000-of-01024.JSON.GZ", JsonLines("body")),
    ("https://h/a.ndjson.zst?download=true", JsonLines("body")),
    ("a.parquet", ParquetText("body")),
    ("a.tar", TextTar("body")),
    ("a.tgz", TextTar("body")),
    ("a.txt.xz", PlainText("--")),
]


@pytest.mark.parametrize(("url", "source"), TEXT, ids=[url for url, _ in TEXT])
def test_text(url: str, source: Source) -> None:
    assert text_source(url, "body", separator="--") == source


def test_captioned_pictures() -> None:
    rule = CaptionRule((("a", 1.0), ("b", 2.0)), CaptionChoice.SAMPLE, 7)
    settings = {"captions": {"a": 1, "b": 2}, "choice": CaptionChoice.SAMPLE, "seed": 7}
    fields = (("json:a", 1.0), ("json:b", 2.0))
    assert image_text_source("00000.tar", **settings) == ImageTextTar(replace(rule, fields=fields))
    assert image_text_source("00000.tar", captions="alt.txt") == ImageTextTar(CaptionRule((("alt.txt", 1.0),)))
    assert image_text_source("a.tar.zst") == ImageTextTar()
    assert image_text_source("a.parquet", image="x", **settings) == ImageTextParquet(rule, "x")
    assert image_text_source("a.json", image="x", folder="f", **settings) == ImageTextJsonl(rule, "x", "f")
    assert image_text_source("a.jsonl.gz") == ImageTextJsonl()


def test_names_that_choose_nothing() -> None:
    for url in ("a.docx", "folder/jsonl", "a.gz", ".jsonl.bak"):
        with pytest.raises(DataError, match=r"known are \.jsonl \.ndjson \.json \.parquet \.pq \.tar"):
            text_source(url)
    with pytest.raises(DataError, match=r"a\.txt: its name does not say how to read captioned pictures"):
        image_text_source("a.txt")
    with pytest.raises(DataError, match=r"parquet is compressed within, and not read inside of \.gz"):
        text_source("a.parquet.gz")
    with pytest.raises(DataError, match=r"a\.jsonl\.lz4: \.lz4 files are not read"):
        text_source("a.jsonl.lz4")
