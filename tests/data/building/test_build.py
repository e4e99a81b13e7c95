"""Datasets are the same whatever happens on the way: a kill, a split, other workers, a full disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_vlm.data.building import build as building
from megatron_vlm.data.building.build import parts_folder
from megatron_vlm.data.building.options import BuildOptions, Duplicates, Split
from megatron_vlm.data.encoded_pictures.filters import CaptionFilter, PictureFilter
from megatron_vlm.data.encoded_pictures.reencode import Reencode
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.merging import merge_datasets
from megatron_vlm.data.preprocess import PreprocessSummary, preprocess_image_text, preprocess_text
from megatron_vlm.data.sequence_facts import open_sequence_facts
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import ConfigError, DataError

MakeTar = Callable[[str, Sequence[tuple[str, bytes]]], Path]
MakePicture = Callable[..., bytes]


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    """300 documents, ten of them unusable, in one file."""
    path = tmp_path / "prose.jsonl"
    words = ["red", "blue", "square", "circle", "two"]
    with path.open("w") as stream:
        for number in range(300):
            text = " ".join(words[(number * 7 + k * k) % 5] for k in range(3 + number % 11))
            stream.write(json.dumps({"text": text if number % 30 else 5, "id": f"n{number}"}) + "\n")
    return path


def everything(folder: Path, ending: str = "") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name.endswith(ending)}


def documents(prefix: Path, tokenizer: Tokenizer) -> list[str]:
    reader = IndexedReader(prefix)
    return [
        "".join(tokenizer.decode(reader.tokens(s).tolist()) for s in reader.document_sequences(d) if not reader.modes[s])
        for d in range(reader.document_count)
    ]


def run(prose: Path, output: Path, tokenizer: Tokenizer, workers: int = 1, **options: Any) -> PreprocessSummary:
    return preprocess_text([str(prose)], output, tokenizer, options=BuildOptions(**options), workers=workers)


def test_cut_into_many_units_it_is_the_same(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(prose, tmp_path / "a" / "d", tokenizer)
    monkeypatch.setattr(building, "UNIT_BYTES", 700)
    cut = run(prose, tmp_path / "b" / "d", tokenizer)
    assert cut.result.units > 10 * whole.result.units
    assert everything(tmp_path / "a") == everything(tmp_path / "b")
    rows = [json.loads(line) for line in (tmp_path / "b" / "d.quarantine.jsonl").read_text().splitlines()]
    assert [row["record"] for row in rows] == list(range(1, 301, 30))
    for row in rows:
        with prose.open("rb") as stream:
            stream.seek(row["offset"])
            assert json.loads(stream.readline())["id"] == row["key"]


COMMAND = """
import sys
from megatron_vlm.data.building import build, worker
build.UNIT_BYTES, build.PROCESS_BYTES, worker.BATCH_RECORDS = 700, 1, 4
from megatron_vlm.data.preprocess import preprocess_text
from megatron_vlm.data.tokenizer import Tokenizer
if __name__ == "__main__":
    summary = preprocess_text([sys.argv[1]], sys.argv[2], Tokenizer.load(sys.argv[3]), workers=int(sys.argv[4]))
    print(summary.result.again)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, workers: int
) -> None:
    script = tmp_path / "run.py"
    script.write_text(COMMAND)
    tokenizer.save(tmp_path / "tokenizer")
    prefix = tmp_path / "killed" / "d"
    command = [sys.executable, str(script), str(prose), str(prefix), str(tmp_path / "tokenizer"), str(workers)]
    done = subprocess.run([*command[:3], str(tmp_path / "whole" / "d"), *command[4:]], capture_output=True, check=True)
    assert done.stdout == b"0\n"
    kills = 0
    for parts in (1, 4, 9):  # killed when so many are finished
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and len(list(parts_folder(prefix).glob("*.json"))) < parts:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert not prefix.with_suffix(".idx").exists() or process.returncode == 0
    assert kills >= 2
    last = subprocess.run(command, capture_output=True, check=True)
    assert int(last.stdout) >= 4
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")


def test_parts_of_another_job_are_not_used(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "UNIT_BYTES", 700)
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(prose, tmp_path / "d", tokenizer)
    monkeypatch.undo()
    monkeypatch.setattr(building, "UNIT_BYTES", 700)
    assert run(prose, tmp_path / "d", tokenizer, append_eod=False).result.again == 0
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run(prose, tmp_path / "d", tokenizer)
    monkeypatch.undo()
    monkeypatch.setattr(building, "UNIT_BYTES", 700)
    assert run(prose, tmp_path / "d", tokenizer).result.again == 3


@pytest.mark.parametrize("suffix", [".bin", ".columns", ".rejections", ".json"])
def test_a_part_that_did_not_reach_the_disk_is_made_again(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(building, "UNIT_BYTES", 700)
    with monkeypatch.context() as patched:
        stop_after(patched, 3)
        with pytest.raises(KeyboardInterrupt):
            run(prose, tmp_path / "a" / "d", tokenizer)
    damaged = parts_folder(tmp_path / "a" / "d") / f"{0:08d}{suffix}"
    damaged.write_bytes(bytes(damaged.stat().st_size))  # what a power cut leaves
    assert run(prose, tmp_path / "a" / "d", tokenizer).result.again == 2
    run(prose, tmp_path / "b" / "d", tokenizer)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


def stop_after(monkeypatch: pytest.MonkeyPatch, units: int) -> None:
    own = building.worker.Worker.do

    def do(self: Any, number: int, *args: Any) -> Any:
        if number == units:
            raise KeyboardInterrupt
        return own(self, number, *args)

    monkeypatch.setattr(building.worker.Worker, "do", do)


def test_two_runs_at_one_output_are_refused(prose: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with building._only_run(parts_folder(tmp_path / "d")), pytest.raises(DataError, match="another run is writing"):
        run(prose, tmp_path / "d", tokenizer)


def test_a_full_disk_is_named_and_nothing_has_its_final_name(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(IndexedWriter, "adopt", full)
        with pytest.raises(DataError, match="disk of .* is full.*run the same command again"):
            run(prose, tmp_path / "out" / "d", tokenizer)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["d.parts"]
    assert run(prose, tmp_path / "out" / "d", tokenizer).result.again == 1


def test_a_split_is_by_content_and_loses_nothing(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(prose, tmp_path / "whole", tokenizer)
    split = Split.parse("train=80,valid=15,test=5", seed=1)
    run(prose, tmp_path / "d", tokenizer, split=split)
    parts = {name: documents(tmp_path / f"d_{name}", tokenizer) for name in split.names}
    assert sorted(sum(parts.values(), [])) == sorted(documents(tmp_path / "whole", tokenizer))
    assert 200 < len(parts["train"]) < 260
    assert not set(parts["train"]) & set(parts["valid"])  # the same text is never in two parts
    monkeypatch.setattr(building, "UNIT_BYTES", 500)
    run(prose, tmp_path / "e", tokenizer, split=split)
    for name in split.names:
        assert (tmp_path / f"d_{name}.bin").read_bytes() == (tmp_path / f"e_{name}.bin").read_bytes()
    assert IndexedReader(tmp_path / "d_valid").metadata["split"] == "valid"


def test_shards_stay_below_their_size_and_hold_everything_in_order(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run(prose, tmp_path / "whole", tokenizer)
    summary = run(prose, tmp_path / "d", tokenizer, shard_bytes=400)
    prefixes = [output.prefix for output in summary.result.outputs]
    assert [prefix.name for prefix in prefixes[:2]] == ["d_00000", "d_00001"]
    sizes = [prefix.with_name(prefix.name + ".bin").stat().st_size for prefix in prefixes]
    longest = int(IndexedReader(tmp_path / "whole").sequence_lengths.max()) * 2
    assert all(400 - longest < size <= 400 for size in sizes[:-1])
    assert sum((documents(prefix, tokenizer) for prefix in prefixes), []) == documents(tmp_path / "whole", tokenizer)


def test_numbers_of_shards_and_of_a_split_are_those_of_each(
    prose: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "UNIT_BYTES", 700)
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "two blue squares"}\n' * 9)
    whole = preprocess_text([str(prose), str(other)], tmp_path / "whole", tokenizer).metadata
    assert [row["documents"] for row in whole["sources"]] == [290, 9]
    for name, options in (
        ("shards", BuildOptions(shard_bytes=400)),
        ("split", BuildOptions(split=Split.parse("train=80,valid=20"))),
    ):
        summary = preprocess_text([str(prose), str(other)], tmp_path / name, tokenizer, options=options)
        prefixes = [output.prefix for output in summary.result.outputs]
        known = [IndexedReader(prefix).metadata for prefix in prefixes]
        assert len({one["run"] for one in known} - {whole["run"]}) == 1
        for one in known:
            assert sum(row["documents"] for row in one["sources"]) == one["documents"]
            assert [row["records"] for row in one["sources"]] == [300, 9]
        merged = merge_datasets(prefixes, tmp_path / f"{name}-merged")
        names = ("documents", "sequences", "tokens", "images", "histograms", "quarantine", "filtered", "sources")
        assert {name: merged[name] for name in names} == {name: whole[name] for name in names}


def test_an_empty_part_of_a_split_has_no_documents_of_its_source(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "red"}\n')
    run(tmp_path / "t.jsonl", tmp_path / "d", tokenizer, split=Split.parse("train=98,valid=2"))
    known = {name: IndexedReader(tmp_path / f"d_{name}").metadata["sources"][0] for name in ("train", "valid")}
    assert {name: (row["documents"], row["records"]) for name, row in known.items()} == {"train": (1, 1), "valid": (0, 1)}


def test_the_run_of_the_same_inputs_is_the_same(prose: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    runs = [run(prose, tmp_path / name, tokenizer).metadata["run"] for name in "ab"]
    other = run(prose, tmp_path / "c", tokenizer, append_eod=False).metadata["run"]
    assert runs[0] == runs[1] != other


def test_a_document_larger_than_a_shard_has_one_of_its_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": "red " * n}) + "\n" for n in (1, 500, 1)))
    summary = run(tmp_path / "t.jsonl", tmp_path / "d", tokenizer, shard_bytes=100)
    assert [output.statistics.documents for output in summary.result.outputs] == [1, 1, 1]


@pytest.fixture
def pictures(make_tar: MakeTar, make_picture: MakePicture) -> list[str]:
    """Six captioned pictures in two tars; the first comes again in the second tar."""
    made = [make_picture("PNG", 40 + n, 30) for n in range(5)]
    first = [(f"{n}.png", made[n]) for n in range(3)] + [(f"{n}.txt", b"a red square %d" % n) for n in range(3)]
    second = [("5.png", made[0]), ("5.txt", b"again"), ("6.png", made[3]), ("6.txt", b"blue"), ("7.png", made[4])]
    tars = [make_tar("p-0.tar", sorted(first)), make_tar("p-1.tar", [*second, ("7.txt", b"two circles")])]
    return [str(tar) for tar in tars]


@pytest.mark.parametrize("unit_bytes", [1, 1 << 30])
def test_a_duplicate_is_left_out_and_its_first_stays(
    pictures: list[str], tokenizer: Tokenizer, tmp_path: Path, unit_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "UNIT_BYTES", unit_bytes)
    options = BuildOptions(duplicates=Duplicates.SAME_BYTES, append_eod=False)
    summary = preprocess_image_text(pictures, tmp_path / "d", tokenizer, options=options)
    assert documents(tmp_path / "d", tokenizer) == [*(f"a red square {n}" for n in range(3)), "blue", "two circles"]
    assert summary.metadata["filtered"] == {"duplicate_image": 1}
    assert [row["documents"] for row in summary.metadata["sources"]] == [3, 2]
    assert summary.lost_share == 0


def test_captions_of_one_picture_are_no_duplicates(make_tar: MakeTar, make_picture: MakePicture, tokenizer: Tokenizer,
                                                   tmp_path: Path) -> None:  # fmt: skip
    from megatron_vlm.data.captions import CaptionChoice

    tar = make_tar("t.tar", [("0.png", make_picture("PNG", 9, 9)), ("0.json", b'{"caption": ["red", "blue"]}')])
    preprocess_image_text(
        [str(tar)],
        tmp_path / "d",
        tokenizer,
        caption_choice=CaptionChoice.ALL,
        options=BuildOptions(duplicates=Duplicates.SAME_BYTES),
    )
    assert IndexedReader(tmp_path / "d").document_count == 2


def test_filters_are_counted_and_are_no_loss(pictures: list[str], tokenizer: Tokenizer, tmp_path: Path) -> None:
    options = BuildOptions(pictures=PictureFilter(max_aspect=1.4), captions=CaptionFilter(min_chars=6))
    summary = preprocess_image_text(pictures, tmp_path / "d", tokenizer, options=options)
    assert summary.metadata["filtered"] == {"extreme_aspect": 2, "short_caption": 1}
    assert summary.totals()["documents"] == 3
    assert summary.result.lost == 0


def test_pictures_made_anew_have_their_new_size_in_the_facts(
    pictures: list[str], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    options = BuildOptions(reencode=Reencode(max_side=20, format="jpeg"))
    preprocess_image_text(pictures, tmp_path / "d", tokenizer, options=options)
    reader = IndexedReader(tmp_path / "d")
    facts = open_sequence_facts(tmp_path / "d", reader.sequence_count)
    assert facts is not None
    assert (facts[reader.modes == 1].max(axis=1) == 20).all()
    assert reader.image_bytes(0)[:2] == b"\xff\xd8"


def test_too_many_tokens_are_set_aside(prose: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    run(prose, tmp_path / "all", tokenizer)
    lengths = np.asarray(IndexedReader(tmp_path / "all").sequence_lengths)
    summary = run(prose, tmp_path / "d", tokenizer, max_tokens=8)
    assert summary.metadata["quarantine"]["too_many_tokens"] == (lengths - 1 > 8).sum()
    assert np.asarray(IndexedReader(tmp_path / "d").sequence_lengths).max() == 9


@pytest.mark.parametrize("text", ["train=1", "a=1,a=2", "a=x,b=1", "a=-1,b=2", "a/b=1,c=1"])
def test_splits_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Split.parse(text)


def test_megatrons_way_to_write_a_split() -> None:
    assert Split.parse("98,1,1").names == ("train", "valid", "test")
    assert Split.parse("99,1,0").names == ("train", "valid")


def test_the_quarantine_is_ascii_and_goes_when_nothing_is_set_aside(tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = tmp_path / "t.jsonl"
    source.write_text('{"text": "red"}\n{"text": 5, "caf\\u00e9 \\ud800": 1}\n')
    run(source, tmp_path / "d", tokenizer)
    (line,) = (tmp_path / "d.quarantine.jsonl").read_bytes().splitlines()
    assert line.isascii()
    assert set(json.loads(line)) == {"file", "offset", "record", "key", "reason", "detail"}
    source.write_text('{"text": "red"}\n')
    run(source, tmp_path / "d", tokenizer)
    assert not (tmp_path / "d.quarantine.jsonl").exists()


def test_an_input_whose_name_is_no_utf8(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"text": "red"}\n')
    run(tmp_path / "old.jsonl", tmp_path / "d", tokenizer)
    source = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    source.write_text('{"text": "blue"}\n{"text": 5}\n')
    summary = preprocess_text([f"{tmp_path}/caf*.jsonl"], tmp_path / "d", tokenizer)
    assert summary.metadata["sources"][0]["path"] == str(source)
    assert documents(tmp_path / "d", tokenizer) == ["blue<|endoftext|>"]
    assert json.loads((tmp_path / "d.quarantine.jsonl").read_text())["file"] == str(source)


def test_a_strict_run_names_the_record_and_the_remedy(prose: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prose\.jsonl, record 1 \(n0\): missing_text: .*or run without --strict"):
        run(prose, tmp_path / "d", tokenizer, strict=True)
