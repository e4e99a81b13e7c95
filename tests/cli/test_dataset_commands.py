"""The commands on finished datasets: what they print, what they end with, and what they leave."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_vlm.cli.inspect import parse_range
from megatron_vlm.cli.main import main
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.data.tokenizer_training import train_bpe
from megatron_vlm.errors import ConfigError, DataError


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(iter(["a red square", "a blue circle"] * 4), 280)


@pytest.fixture
def dataset(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """Twelve captioned pictures, and a sidecar that says that every other caption is only read."""
    tokenizer.save(tmp_path / "tokenizer")
    rows = []
    with IndexedWriter(tmp_path / "d", np.int32, multimodal=True) as writer:
        for number in range(12):
            stream = io.BytesIO()
            Image.new("RGB", (40 + number, 30), (200, 10, number)).save(stream, "PNG")
            writer.add_image(stream.getvalue())
            writer.add_text([*tokenizer.encode(f"a red square\nno {number}"), tokenizer.eod_id])
            rows += [(30, 40 + number), (number % 2, 0)]
            writer.end_document()
        known = {"tool_version": "0", "kind": "image_text", "tokenizer_fingerprint": tokenizer.fingerprint}
        writer.finalize({**known, "vocab_size": tokenizer.vocab_size, "quarantine": {}, "sources": []})
    np.save(tmp_path / "d.sequences.npy", np.array(rows, np.int32))
    return tmp_path / "d"


Capture = pytest.CaptureFixture[str]


def test_merge_sample_and_validate(dataset: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["merge", f"{dataset}.idx", str(dataset), "--output", str(tmp_path / "two")]) == 0
    assert "two.bin and .idx: 24 documents of 2 datasets, 24 images" in capsys.readouterr().out
    draw = ["sample", str(tmp_path / "two"), "--documents", "7", "--seed", "4", "--workers", "2"]
    assert main([*draw, "--output", str(tmp_path / "some")]) == 0
    assert "7 documents of 24" in capsys.readouterr().out
    report = tmp_path / "report.json"
    assert main(["validate", str(tmp_path / "two"), f"{tmp_path / 'some'}.bin", "--json", str(report)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""  # a bar is for terminals
    assert shown.out.count(": sound (") == 2
    assert "GB/s" in shown.out
    written = json.loads(report.read_text())
    assert written["sound"] is True
    assert [one["documents"] for one in written["datasets"]] == [24, 7]
    assert main(["inspect", str(tmp_path / "some")]) == 0
    shown_summary = capsys.readouterr().out
    assert f"sampled of {tmp_path / 'two'}: 24 documents, seed 4" in shown_summary
    assert shown_summary.count("merged of") == 2


def test_a_source_whose_documents_are_not_known(tmp_path: Path, capsys: Capture) -> None:
    row = {"path": "caf\udce9.jsonl", "records": 3, "sha256": "f" * 64}
    with IndexedWriter(tmp_path / "d") as writer:
        writer.finalize({"tool_version": "0", "kind": "text", "sources": [row, {**row, "documents": 2}]})
    assert main(["inspect", str(tmp_path / "d")]) == 0
    shown = capsys.readouterr().out
    assert "source     caf\\udce9.jsonl: 3 records, sha256" in shown
    assert "source     caf\\udce9.jsonl: 2 documents of 3 records, sha256" in shown


def test_damage_ends_with_1_and_is_named(dataset: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["merge", str(dataset), "--output", str(tmp_path / "copy")]) == 0
    content = bytearray((tmp_path / "copy.bin").read_bytes())
    content[60] ^= 4
    (tmp_path / "copy.bin").write_bytes(content)
    capsys.readouterr()
    assert main(["validate", str(dataset), str(tmp_path / "copy"), "--json", str(tmp_path / "r.json")]) == 1
    shown = capsys.readouterr().out
    assert "d: sound" in shown
    assert "copy: DAMAGED in 1 place " in shown
    assert "its sha256 is another than recorded" in shown
    assert "documents 0 to 11" in shown
    (damage,) = json.loads((tmp_path / "r.json").read_text())["datasets"][1]["damage"]
    assert (damage["start"], damage["stop"], damage["last_document"]) == (0, len(content), 11)
    assert main(["validate", str(tmp_path / "copy"), "--quick"]) == 0
    assert "not checked: the contents of copy.bin (--quick)" in capsys.readouterr().out
    assert main(["validate", str(tmp_path / "copy"), "--no-checksums"]) == 1
    assert "its PNG has a chunk at byte 33 whose checksum is wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "nothing"], "a dataset is named without suffix"),
        (["validate", "d", "--workers", "0"], "--workers is 0"),
        (["validate", "d", "--json", "none/x.json"], "--json none/x.json cannot be written"),
        (["merge", "d", "nothing", "--output", "x"], "does not exist"),
        (["merge", "d", "--output", "d"], "is read here and cannot be written"),
        (["sample", "d", "--documents", "13", "--output", "x"], "12 documents, from which 13 cannot be drawn"),
        (["sample", "d", "--fraction", "2", "--output", "x"], "fraction is 2.0"),
        (["inspect", "d", "--contact-sheet", "x.pdf"], "neither .html nor .png"),
        (["inspect", "d", "--contact-sheet", "x.png", "--pictures", "0"], "--pictures is 0"),
        (["inspect", "d", "--documents", "b:c"], "--documents b:c is no range"),
        (["inspect", "d", "--documents", "12:"], "there is no 12"),
    ],
)
def test_what_cannot_be_done_ends_with_2(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(dataset.parent)
    before = sorted(dataset.parent.iterdir())
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(dataset.parent.iterdir()) == before


def test_documents_as_they_read(dataset: Path, tmp_path: Path, capsys: Capture) -> None:
    show = ["inspect", str(dataset), "--documents", "2:4", "--tokenizer", str(tmp_path / "tokenizer")]
    assert main(show) == 0
    shown = capsys.readouterr().out
    assert "document 2: 1 image, " in shown
    assert "[image 42x30 PNG " in shown
    assert "  read | a red square\n       | no 2<|endoftext|>\n" in shown
    assert "learnt | a red square\n       | no 3<|endoftext|>\n" in shown
    assert "document 4" not in shown
    assert main([*show, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["document"] for line in lines] == [2, 3]
    assert lines[0]["parts"][1]["text"] == "a red square\nno 2<|endoftext|>"


def test_histogram_and_json(dataset: Path, capsys: Capture) -> None:
    assert main(["inspect", str(dataset), "--histogram"]) == 0
    shown = capsys.readouterr().out
    assert "tokens a document: " in shown
    assert "longer side of a picture, in pixels: 40 to 51" in shown
    assert main(["inspect", str(dataset), "--histogram", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert (written["documents"], written["images"]["total"]) == (12, 12)
    assert [one["max"] for one in written["histograms"]][1:] == [1, 30, 51]


def test_contact_sheets(dataset: Path, tmp_path: Path, capsys: Capture) -> None:
    sheet = ["inspect", str(dataset), "--pictures", "5", "--contact-sheet"]
    assert main([*sheet, str(tmp_path / "new" / "s.html"), "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    assert "5 pictures" in capsys.readouterr().out
    page = (tmp_path / "new" / "s.html").read_text()
    assert page.count("<img ") == 5
    assert "a red square no" in page
    assert main([*sheet, str(tmp_path / "s.png")]) == 0
    assert "with --tokenizer, captions are text" in capsys.readouterr().out
    with Image.open(tmp_path / "s.png") as picture:
        picture.load()
    assert not list(tmp_path.glob("**/*.partial"))


def test_a_sheet_of_text_is_refused(tmp_path: Path, capsys: Capture) -> None:
    with IndexedWriter(tmp_path / "t", np.uint16) as writer:
        writer.add_text([1])
        writer.end_document()
    assert main(["inspect", str(tmp_path / "t"), "--contact-sheet", str(tmp_path / "s.html")]) == 2
    assert "has no pictures to show" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"), [("3:7", (3, 7)), ("3:", (3, 9)), (":4", (0, 4)), ("5", (5, 6)), (":99", (0, 9))]
)
def test_ranges(text: str, expected: tuple[int, int]) -> None:
    assert parse_range(text, 9) == range(*expected)


@pytest.mark.parametrize("text", ["", "a", "7:3", "-1", "-2:", "1:2:3", "1.5"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(ConfigError, match="is no range"):
        parse_range(text, 9)
    with pytest.raises(DataError, match="there is no 9"):
        parse_range("9", 9)


def test_no_command_needs_torch(dataset: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from megatron_vlm.cli.main import main\n"
        "d, out = sys.argv[1:]\n"
        "for words in (['merge', d, '--output', out], ['validate', out], ['inspect', d, '--histogram'],\n"
        "              ['sample', d, '--tokens', '9', '--output', out + '2'],\n"
        "              ['inspect', d, '--contact-sheet', out + '.html'], ['inspect', d, '--documents', '1']):\n"
        "    assert main(words) == 0, words\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, str(dataset), str(tmp_path / "out")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert IndexedReader(tmp_path / "out2").document_count >= 1
