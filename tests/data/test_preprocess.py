"""From source files to datasets: what is in them, what is noted about them, and that the bytes never vary."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from megatron_vlm.data.building import build, worker
from megatron_vlm.data.building.options import BuildOptions
from megatron_vlm.data.captions import CaptionChoice
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.preprocess import preprocess_conversations, preprocess_image_text, preprocess_text
from megatron_vlm.data.sequence_facts import open_sequence_facts
from megatron_vlm.data.sources.opening import file_sha256
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import ConfigError, DataError

MakeTar = Callable[[str, Sequence[tuple[str, bytes]]], Path]
MakePicture = Callable[..., bytes]


@pytest.fixture
def tars(make_tar: MakeTar, make_picture: MakePicture) -> list[Path]:
    """Three sound records in three formats and, between them, one of each of three defects."""
    jpeg, png, webp = (make_picture(form, 31, 17) for form in ("JPEG", "PNG", "WEBP"))
    captions = json.dumps({"caption": ["a red square", "two red circles"], "status": "success"}).encode()
    failed = json.dumps({"caption": "x", "status": "failed_to_download"}).encode()
    first = make_tar(
        "shard-0.tar",
        [
            ("0.jpg", jpeg),
            ("0.json", captions),
            ("1.jpg", jpeg[: len(jpeg) // 2]),
            ("1.txt", b"cut short"),
            ("2.png", png),
            ("2.txt", b"a blue circle"),
        ],
    )
    second = make_tar("shard-1.tar", [("3.json", failed), ("4.png", png), ("5.txt", b"one <image>"), ("5.webp", webp)])
    return [first, second]


def names(paths: Sequence[Path]) -> list[str]:
    return [str(path) for path in paths]


def texts(prefix: Path, tokenizer: Tokenizer) -> list[str]:
    reader = IndexedReader(prefix)
    return [tokenizer.decode(reader.tokens(s).tolist()) for s in np.flatnonzero(reader.modes == 0)]


def test_a_picture_document_is_its_bytes_and_its_caption(
    tars: list[Path], tokenizer: Tokenizer, tmp_path: Path, make_picture: MakePicture
) -> None:
    summary = preprocess_image_text(names(tars), tmp_path / "out" / "d", tokenizer)
    reader = IndexedReader(tmp_path / "out" / "d")
    assert reader.multimodal
    assert reader.dtype == np.int32
    assert reader.modes.tolist() == [1, 0] * 3
    assert [reader.image_bytes(s) for s in (0, 2, 4)] == [make_picture(f, 31, 17) for f in ("JPEG", "PNG", "WEBP")]
    assert texts(reader.prefix, tokenizer) == [
        "a red square<|endoftext|>",
        "a blue circle<|endoftext|>",
        "one <image><|endoftext|>",
    ]
    for document in range(3):
        last = reader.tokens(reader.document_sequences(document)[1])
        assert last[-1] == tokenizer.eod_id
        assert tokenizer.image_token_id not in last
    assert summary.metadata == reader.metadata
    facts = open_sequence_facts(reader.prefix, reader.sequence_count)
    assert facts is not None
    assert facts.tolist() == [[17, 31], [1, 0]] * 3


def test_metadata_and_quarantine(tars: list[Path], tokenizer: Tokenizer, tmp_path: Path) -> None:
    summary = preprocess_image_text(names(tars), tmp_path / "d", tokenizer, seed=3)
    reader = IndexedReader(tmp_path / "d")
    known = reader.metadata
    assert (known["kind"], known["documents"], known["images"]) == ("image_text", 3, 3)
    assert known["tokens"] == reader.document_text_tokens().sum()
    assert known["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert (known["vocab_size"], known["eod_id"], known["image_token_id"]) == (tokenizer.vocab_size, 0, 1)
    assert known["settings"]["seed"] == 3
    assert known["quarantine"] == {"failed_download": 1, "missing_caption": 1, "undecodable_image": 1}
    assert known["sources"] == [
        {
            "path": str(tar),
            "bytes": tar.stat().st_size,
            "sha256": file_sha256(str(tar)),
            "records": records,
            "documents": documents,
            "quarantined": quarantined,
        }
        for tar, records, documents, quarantined in zip(tars, (3, 3), (2, 1), (1, 2), strict=True)
    ]
    rows = [json.loads(line) for line in (tmp_path / "d.quarantine.jsonl").read_text().splitlines()]
    assert [(Path(row["file"]).name, row["key"], row["reason"]) for row in rows] == [
        ("shard-0.tar", "1", "undecodable_image"),
        ("shard-1.tar", "3", "failed_download"),
        ("shard-1.tar", "4", "missing_caption"),
    ]
    assert "3 documents, 3 images" in summary.describe()
    assert "Set aside 3 records" in summary.describe()


def test_caption_choices(tars: list[Path], tokenizer: Tokenizer, tmp_path: Path) -> None:
    def captions(choice: CaptionChoice, seed: int) -> list[str]:
        preprocess_image_text(
            names(tars[:1]),
            tmp_path / "d",
            tokenizer,
            captions="caption",
            caption_choice=choice,
            seed=seed,
            options=BuildOptions(append_eod=False),
        )
        return texts(tmp_path / "d", tokenizer)

    both = ["a red square", "two red circles"]
    assert captions(CaptionChoice.FIRST, 0) == both[:1]
    assert captions(CaptionChoice.ALL, 0) == both
    assert IndexedReader(tmp_path / "d").document_images().tolist() == [1, 1]
    sampled = {seed: captions(CaptionChoice.SAMPLE, seed) for seed in range(8)}
    assert {caption for drawn in sampled.values() for caption in drawn} == set(both)
    assert all(len(drawn) == 1 for drawn in sampled.values())
    assert captions(CaptionChoice.SAMPLE, 5) == sampled[5]


def test_bytes_depend_on_neither_workers_nor_batches(
    tars: list[Path], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everything(folder: str, workers: int) -> dict[str, bytes]:
        preprocess_image_text(names(tars), tmp_path / folder / "d", tokenizer, workers=workers)
        assert not (tmp_path / folder / "d.parts").exists()
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}

    first = everything("a", 1)
    assert sorted(first) == ["d.bin", "d.idx", "d.json", "d.quarantine.jsonl", "d.sequences.npy"]
    assert everything("b", 1) == first
    monkeypatch.setattr(build, "PROCESS_BYTES", 1)
    assert everything("c", 2) == first
    for records in (1, 2):
        monkeypatch.setattr(worker, "BATCH_RECORDS", records)
        assert everything(f"d{records}", 1) == first


@pytest.mark.parametrize("damaged", [True, False])
def test_strict_stops_at_the_first_defect_and_leaves_nothing(
    tars: list[Path], tokenizer: Tokenizer, tmp_path: Path, damaged: bool
) -> None:
    inputs = names(tars if damaged else tars[1:])
    expected = r"shard-0\.tar, record 2 \(1\): undecodable_image" if damaged else r"shard-1\.tar, record 1 \(3\): failed"
    with pytest.raises(DataError, match=expected):
        preprocess_image_text(inputs, tmp_path / "out" / "d", tokenizer, options=BuildOptions(strict=True))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["d.parts"]
    preprocess_image_text(inputs, tmp_path / "out" / "d", tokenizer)


def test_a_run_that_would_write_nothing_is_an_error(make_tar: MakeTar, tokenizer: Tokenizer, tmp_path: Path) -> None:
    bad = make_tar("bad.tar", [("7.png", b"not a picture"), ("7.txt", b"t")])
    empty = make_tar("empty.tar", [])
    with pytest.raises(DataError, match=r"no record can be used \(1 undecodable_image\).*bad\.tar, record 1 '7'"):
        preprocess_image_text([str(bad)], tmp_path / "out" / "d", tokenizer)
    with pytest.raises(DataError, match=r"empty\.tar holds no records"):
        preprocess_image_text([str(empty)], tmp_path / "out" / "d", tokenizer)
    by_kind = make_tar("by_kind.tar", [("0.png", b"P"), ("1.png", b"P"), ("0.txt", b"t"), ("1.txt", b"t")])
    with pytest.raises(
        DataError, match=r"2 missing_caption, 2 missing_image.*neighbours: write it anew by `tar --sort=name"
    ):
        preprocess_image_text([str(by_kind)], tmp_path / "out" / "d", tokenizer)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("append_eod", [True, False])
def test_a_text_document_is_one_sequence(tokenizer: Tokenizer, tmp_path: Path, append_eod: bool) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "a red <|endoftext|> square"}\n{"text": ""}\n{"text": "blue"}\n')
    options = BuildOptions(append_eod=append_eod)
    preprocess_text([str(tmp_path / "*.jsonl")], tmp_path / "d", tokenizer, options=options)
    reader = IndexedReader(tmp_path / "d")
    assert not reader.multimodal
    assert reader.dtype == np.uint16
    assert reader.document_indices.tolist() == [0, 1, 2]
    ending = [tokenizer.eod_id] if append_eod else []
    expected = [tokenizer.encode("a red <|endoftext|> square") + ending, tokenizer.encode("blue") + ending]
    assert [reader.tokens(s).tolist() for s in range(2)] == expected
    assert [row.count(tokenizer.eod_id) for row in expected] == [len(ending)] * 2
    assert reader.metadata["quarantine"] == {"empty_text": 1}
    assert reader.metadata["kind"] == "text"


@pytest.mark.parametrize("last", ["<|endoftext|>", None])
def test_a_conversation_ends_with_one_eod(last: str | None, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Also where that is what its template puts behind every answer, as LLaVA's does with </s>."""
    suffix = [{"special": last, "learnt": True}] if last else []
    template = {"name": "own", "user": {}, "assistant": {"suffix": suffix, "learnt": True}}
    (tmp_path / "own.json").write_text(json.dumps(template))
    talk = [{"from": "human", "value": "red"}, {"from": "gpt", "value": "two circles"}]
    (tmp_path / "talk.json").write_text(json.dumps([{"id": "1", "conversations": talk}]))
    preprocess_conversations(
        [str(tmp_path / "talk.json")], tmp_path / "d", tokenizer, template=str(tmp_path / "own.json"), images=[str(tmp_path)]
    )
    reader = IndexedReader(tmp_path / "d")
    ids = np.concatenate([reader.tokens(sequence) for sequence in reader.document_sequences(0)])
    assert int((ids == tokenizer.eod_id).sum()) == 1
    assert ids[-1] == tokenizer.eod_id


def test_workers_below_one_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a red square")
    with pytest.raises(ConfigError, match="workers is 0"):
        preprocess_text([str(tmp_path / "t.txt")], tmp_path / "d", tokenizer, workers=0)


def test_progress_is_drawn_when_asked_for(
    tars: list[Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("megatron_vlm.data.building.progress.LOG_SECONDS", 0.0)
    preprocess_image_text(names(tars), tmp_path / "d", tokenizer, show_progress=True)
    drawn = capsys.readouterr().err
    assert "documents/s" in drawn
    assert "tokens/s" in drawn
    preprocess_image_text(names(tars), tmp_path / "d", tokenizer)
    assert capsys.readouterr().err == ""
