"""From tars and jsonl to datasets and back, through the commands that a user types."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from megatron_vlm.cli.main import main
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.tokenizer import Tokenizer
from tests.scripts import load_script

TOOLS = Path(__file__).parents[2] / "tools"
CAPTIONS = ("a red square", "a blue circle", "two <image> circles")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """pictures-0.tar with three sound pictures and a broken one, prose.jsonl with two documents."""
    with tarfile.open(tmp_path / "pictures-0.tar", "w") as tar:

        def add(name: str, content: bytes) -> None:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))

        for number, (form, caption) in enumerate(zip(("JPEG", "PNG", "WEBP"), CAPTIONS, strict=True)):
            stream = io.BytesIO()
            Image.new("RGB", (33 + number, 21), (200, 10, 10)).save(stream, form)
            add(f"{number:09d}.{form.lower()}", stream.getvalue())
            add(f"{number:09d}.txt", caption.encode())
            add(f"{number:09d}.json", json.dumps({"status": "success", "syn": [caption, "x"]}).encode())
        add("000000003.jpg", b"not a picture")
        add("000000003.txt", b"broken")
    (tmp_path / "prose.jsonl").write_text(
        "".join(json.dumps({"text": t, "title": "one circle"}) + "\n" for t in ("red circles", "blue squares"))
    )
    return tmp_path


@pytest.fixture
def tokenizer(sources: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    arguments = ["--image-text", str(sources / "*.tar"), "--text", str(sources / "prose.jsonl")]
    output = sources / "tokenizer"
    assert main(["train-tokenizer", *arguments, "--vocab-size", "280", "--output", str(output)]) == 0
    assert "learnt from 6 texts; 0 records unusable" in capsys.readouterr().out
    return output


def tool(name: str) -> ModuleType:
    return load_script(TOOLS / f"{name}.py")


def test_pictures_end_to_end(sources: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = sources / "data" / "pictures"
    inputs = ["--input", str(sources / "pictures-*.tar"), "--tokenizer", str(tokenizer), "--workers", "2"]
    assert main(["preprocess", "image-text", *inputs, "--output", str(prefix), "--max-lost", "0.3"]) == 0
    summary = capsys.readouterr().out
    assert "3 documents, 3 images" in summary
    assert "Set aside 1 records (1 undecodable_image)" in summary

    assert main(["inspect", str(prefix)]) == 0
    shown = capsys.readouterr().out
    assert "3 in 6 sequences" in shown
    assert "set aside  1 undecodable_image" in shown

    saved = sources / "saved"
    show = ["inspect", f"{prefix}.bin", "--document", "2", "--tokenizer", str(tokenizer)]
    assert main([*show, "--save-images", str(saved)]) == 0
    shown = capsys.readouterr().out
    assert "WEBP 35 x 21 RGB" in shown
    assert "'two <image> circles<|endoftext|>'" in shown
    (picture,) = saved.iterdir()
    assert picture.read_bytes() == IndexedReader(prefix).image_bytes(4)


def test_text_end_to_end(sources: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = sources / "data" / "prose"
    inputs = ["--input", str(sources / "prose.jsonl"), "--tokenizer", str(tokenizer), "--key", "title"]
    assert main(["preprocess", "text", *inputs, "--no-append-eod", "--output", str(prefix)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(prefix), "--document", "1"]) == 0
    assert str(Tokenizer.load(tokenizer).encode("one circle")) in capsys.readouterr().out


def test_the_output_may_be_named_by_one_of_its_files(sources: Path, tokenizer: Path) -> None:
    inputs = ["--input", str(sources / "prose.jsonl"), "--tokenizer", str(tokenizer)]
    assert main(["preprocess", "text", *inputs, "--output", str(sources / "d.bin")]) == 0
    assert sorted(path.name for path in sources.glob("d.*")) == ["d.bin", "d.idx", "d.json", "d.sequences.npy"]


def test_strict_ends_with_code_2_and_one_line(sources: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ["--input", str(sources / "pictures-0.tar"), "--tokenizer", str(tokenizer), "--strict"]
    assert main(["preprocess", "image-text", *inputs, "--output", str(sources / "d")]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "pictures-0.tar, record 4 (000000003): undecodable_image" in message
    assert [path.name for path in sources.glob("d.*")] == ["d.parts"]


def test_a_missing_tokenizer_is_named(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = ["--input", str(sources / "prose.jsonl"), "--tokenizer", str(sources / "none")]
    assert main(["preprocess", "text", *inputs, "--output", str(sources / "d")]) == 2
    assert "none does not exist" in capsys.readouterr().err


def test_training_on_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-tokenizer", "--output", str(tmp_path / "t")]) == 2
    assert "--text, --image-text or both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--document", "9"], "has 2 documents, counted from 0; there is no 9"),
        (["--save-images", "x"], "add --document N"),
    ],
)
def test_inspect_says_what_it_cannot_show(
    sources: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    inputs = ["--input", str(sources / "prose.jsonl"), "--tokenizer", str(tokenizer)]
    assert main(["preprocess", "text", *inputs, "--output", str(sources / "d")]) == 0
    assert main(["inspect", str(sources / "d"), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("training", "status", "message"),
    [
        (["--vocab-size", "400", "--min-frequency", "1"], 0, "careful: this is not the tokenizer"),
        (
            ["--vocab-size", "259"],
            2,
            "the tokenizer has only 259: give the one that the dataset was made with",
        ),
    ],
)
def test_inspect_warns_of_another_tokenizer(
    sources: Path,
    tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    training: list[str],
    status: int,
    message: str,
) -> None:
    text = str(sources / "prose.jsonl")
    inputs = ["--input", text, "--tokenizer", str(tokenizer)]
    assert main(["preprocess", "text", *inputs, "--output", str(sources / "d")]) == 0
    other = str(sources / "other")
    assert main(["train-tokenizer", "--text", text, *training, "--output", other]) == 0
    capsys.readouterr()
    assert main(["inspect", str(sources / "d"), "--document", "0", "--tokenizer", other]) == status
    shown = capsys.readouterr()
    assert message in (shown.err if status else shown.out)


def test_inspect_of_a_folder_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_the_tool_with_megatrons_flags_writes_megatrons_names(
    sources: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--input", str(sources / "prose.jsonl"), "--tokenizer-model", str(tokenizer), "--workers", "1"]
    flags += ["--json-keys", "text", "title", "--tokenizer-type", "HuggingFaceTokenizer", "--append-eod"]
    assert tool("preprocess_data").main([*flags, "--output-prefix", str(sources / "p")]) == 0
    assert capsys.readouterr().out.count("Wrote ") == 2
    reader = IndexedReader(sources / "p_text_document")
    assert reader.tokens(0).tolist() == [*Tokenizer.load(tokenizer).encode("red circles"), 0]
    assert IndexedReader(sources / "p_title_document").document_count == 2
    assert tool("preprocess_data").main([*flags, "--output-prefix", str(sources / "p"), "--input", "none"]) == 2
    assert "no input file matches 'none'" in capsys.readouterr().err


def test_the_tool_for_pictures_and_the_command_write_the_same_bytes(
    sources: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--input", str(sources / "pictures-0.tar"), "--caption-key", "syn", "--caption-choice", "all"]
    flags = ["--tokenizer-model", str(tokenizer), "--output-prefix", str(sources / "tool"), "--append-eod"]
    assert tool("preprocess_image_text").main([*common, *flags]) == 0
    flags = ["--tokenizer", str(tokenizer), "--output", str(sources / "verb"), "--summary", str(sources / "summary.json")]
    assert main(["preprocess", "image-text", *common, *flags]) == 3  # a quarter is lost, which is more than a tenth
    assert json.loads((sources / "summary.json").read_text())["quarantined"] == 1
    capsys.readouterr()
    for suffix in (".bin", ".idx", ".json", ".quarantine.jsonl"):
        assert (sources / f"tool{suffix}").read_bytes() == (sources / f"verb{suffix}").read_bytes()
    assert IndexedReader(sources / "verb").document_count == 6


def test_preparing_data_needs_no_torch(sources: Path, tokenizer: Path) -> None:
    """A login node can prepare data; importing torch there takes longer than many a dataset."""
    program = (
        "import sys; from megatron_vlm.cli.main import main; status = main(sys.argv[1:]);"
        "sys.exit(status or 7 * ('torch' in sys.modules))"
    )
    inputs = [
        "--input",
        str(sources / "prose.jsonl"),
        "--tokenizer",
        str(tokenizer),
        "--output",
        str(sources / "d"),
    ]
    done = subprocess.run([sys.executable, "-c", program, "preprocess", "text", *inputs], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quality", "50"), "--quality is of pictures that are made anew"),
        (("--max-lost", "7"), "--max-lost is 7.0"),
        (("--summary", "no/such/folder.json"), "--summary no/such/folder.json cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_before_the_work(
    sources: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], message: str
) -> None:
    common = ["--input", str(sources / "*.tar"), "--output", str(sources / "d"), "--tokenizer", str(tokenizer)]
    assert main(["preprocess", "image-text", *common, *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(sources.glob("d*"))
