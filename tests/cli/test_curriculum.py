"""`megatron-vlm curriculum show`: what it prints and draws of small datasets, and what it says of missing ones."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from megatron_vlm.cli import main as cli
from megatron_vlm.data.indexed_writer import IndexedWriter

#: 8 x 256 positions a step: 12 steps of text and 8 of pictures with captions
SIZE = ["--schedule.train_steps", "20", "--schedule.warmup_steps", "2"]


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Overrides that name two datasets: 100 texts of 101 ids, 40 pictures (4 tokens) with captions of 5."""
    with IndexedWriter(tmp_path / "text", np.uint16) as writer:
        for _ in range(100):
            writer.add_text([7] * 101)
            writer.end_document()
    with IndexedWriter(tmp_path / "captions", np.uint16, multimodal=True) as writer:
        for _ in range(40):
            writer.add_image(b"picture")
            writer.add_text([7] * 5)
            writer.end_document()
    return ["--data.sources", f"{{text: {tmp_path / 'text'}, captions: {tmp_path / 'captions'}}}"]


def show(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert cli.main(["curriculum", "show", *arguments]) == code, capsys.readouterr().err
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    return json.loads(show(capsys, "--json", *arguments, code=code))


def test_the_tables(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A quarter of the last 16,384 positions is pictures: 1,024 of them, of captioned documents of 8 positions."""
    printed = show(capsys, "tiny", *data, *SIZE)
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert printed.startswith("20 steps, 41k positions in 160 packs\n")
    for words in ("12 to 20", "40.0%", "8 x 256", "(continue)", "language, projector, vision", "64 px, 4 tokens"):
        assert words in lines["images"], words
    text_line = next(line for line in printed.splitlines() if line.startswith("text ") and "passes" in line)
    assert "24.6k 100.0%, 2.5 passes" in text_line
    # 4 of a captioned document's 8 positions are pictures, so half of the stage is captions: 8,192 of 320 a pass
    captions_line = next(line for line in printed.splitlines() if line.startswith("captions ") and "passes" in line)
    assert "8.19k 50.0%, 26 passes" in captions_line
    assert "Pictures enter at step 12, 24.6k positions (60.0%) into the run." in printed
    assert "warning: captions: read 25.6 times, more than 4" in printed
    assert "note" not in printed


def test_the_same_as_json(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    plan = as_json(capsys, "--preset", "tiny", *data, *SIZE)
    text, images = plan["stages"]
    assert (text["first_step"], text["end_step"], images["end_step"]) == (0, 12, 20)
    assert images["source_tokens"] == pytest.approx({"text": 8192, "captions": 8192})
    assert images["visual_tokens"] == pytest.approx(4096)
    assert plan["source_passes"] == pytest.approx({"text": (24576 + 8192) / 10_000, "captions": 8192 / 320})
    assert plan["pictures_enter"] == {"step": 12, "positions": 24576}
    assert text["lr"][1] == 2e-3
    assert plan["refused"] == []


def test_overrides_move_the_border(data: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: tiny\nschedule: {train_steps: 20, warmup_steps: 2}\n", encoding="utf-8")
    plan = as_json(capsys, str(file), *data, "--curriculum.stages.0.until", "0.2")
    assert plan["pictures_enter"]["step"] == 4
    assert as_json(capsys, "--config", str(file), *data)["pictures_enter"]["step"] == 12


def test_repeats_and_limits(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "warning" not in show(capsys, "tiny", *data, *SIZE, "--repeats", "30")
    limited = as_json(capsys, "tiny", *data, *SIZE, "--curriculum.max_epochs.captions", "10")
    assert limited["exhausted"][0]["source"] == "captions"
    assert "the run ends there" in limited["warnings"][0]
    assert sum(stage["tokens"] for stage in limited["stages"]) == pytest.approx(24576 + 2 * 3200)


def test_what_training_would_refuse_is_exit_1(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    weights = ["--curriculum.stages.1.sources", "{text: 0.3, captions: 0.7}"]
    printed = show(capsys, "tiny", *data, *SIZE, *weights, code=1)
    assert "refused by train: stage 'images': 0.7 of all positions cannot be pictures" in printed
    assert printed.rstrip().splitlines()[-2].endswith("at most 0.5 can")
    mended = ["--curriculum.stages.1.sources", "{text: 0.5, captions: 0.5}"]
    assert "refused" not in show(capsys, "tiny", *data, *SIZE, *mended)


def test_without_datasets_there_is_a_plan_without_repeats(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    printed = show(capsys, "vlm_1b")
    assert "passes" not in printed
    assert (
        "captions is planned without repeats and pictures: no dataset is given (--data.sources.captions PREFIX)" in printed
    )
    gone = show(capsys, "tiny", *SIZE, "--data.sources", f"{{text: {tmp_path / 'gone'}, captions: {tmp_path / 'off'}}}")
    assert f"{tmp_path / 'gone'}.idx does not exist" in gone


def test_assumed_documents(capsys: pytest.CaptureFixture[str]) -> None:
    plan = as_json(capsys, "vlm_1b", "--assume", "text=1000", "--assume", "captions=38+1")
    images = plan["stages"][1]
    assert images["visual_tokens"] / images["tokens"] == pytest.approx(0.15)
    assert images["source_tokens"]["captions"] * 729 / 766 == pytest.approx(images["visual_tokens"])
    assert plan["source_passes"] == {}


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "html"])
def test_pictures(suffix: str, data: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "new" / f"plan.{suffix}"
    assert f"Wrote {file}" in show(capsys, "tiny", *data, *SIZE, "--out", str(file))
    if suffix == "png":
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            colours = {pixel for _, pixel in picture.convert("RGB").getcolors(1 << 24) or []}
        assert {(0x1F, 0x4E, 0x79), (0xE0, 0x7B, 0x39), (0xB5, 0x17, 0x9E)} <= colours, (
            "both sources and the line of pictures"
        )
    elif suffix == "svg":
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
    elif suffix == "pdf":
        assert file.read_bytes().startswith(b"%PDF")
    else:
        page = file.read_text(encoding="utf-8")
        assert "<svg" in page
        assert "positions of" in page


@pytest.fixture
def finished(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run's folder as it is after 16 of 20 steps, the last line half written: half of the second stage is captions."""
    folder = tmp_path / "run"
    folder.mkdir()
    assert cli.main(["config", "--preset", "tiny", *data, *SIZE]) == 0
    (folder / "config.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    lines = []
    for step in range(16):
        later = 2048 * max(0, step - 11)
        off = 16 if later else 0
        record = {
            "kind": "train",
            "step": step,
            "stage": "text" if step < 12 else "images",
            "lr": 1e-3,
            "tokens": 2048 * (step + 1),
            "source_tokens": {"text": 2048 * min(step + 1, 12) + later // 2 + off, "captions": later // 2 - off},
            "source_visual": {"captions": later // 4},
        }
        lines.append(json.dumps(record))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"kind": "train", "st', encoding="utf-8")
    return folder


def test_a_run_beside_its_plan(finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "run.png"
    printed = show(capsys, "--run", str(finished), "--out", str(picture))
    assert "Planned and achieved, 16 of 20 steps done" in printed
    captions = next(line for line in printed.splitlines() if line.startswith("images  captions"))
    assert captions.split()[2:] == ["50.000%", "49.805%", "-0.195", "points", "-16", "of", "8,192", "positions"]
    plan = as_json(capsys, "--run", str(finished))
    pictures = next(one for one in plan["achieved"]["differences"] if one["stage"] == "images" and one["source"] is None)
    assert (pictures["planned"], pictures["achieved"]) == (pytest.approx(0.25), pytest.approx(0.25))
    alone = tmp_path / "plan.png"
    show(capsys, "--config", str(finished / "config.yaml"), "--out", str(alone))
    with Image.open(picture) as beside, Image.open(alone) as plain:
        assert beside.height > plain.height, "a run's picture has the achieved shares too"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which configuration? Give a YAML file, --preset NAME, or --run FOLDER"),
        (["tiny", "--preset", "tiny"], "two configurations; give one"),
        (["tinny"], "did you mean 'tiny'"),
        (["gone.yaml"], "gone.yaml: cannot be read"),
        (["tiny"], "this curriculum has no plan:\n  - schedule.train_tokens: give train_tokens, train_steps"),
        (["tiny", *SIZE, "--out", "plan.gif"], "plan.gif ends with none of .png, .svg, .pdf, .html"),
        (["tiny", *SIZE, "--curriculum.stages.1.image_pool", "3"], "image_pool: 3 does not divide the 2 x 2 rows"),
        (["tiny", *SIZE, "--assume", "captions"], "--assume captions: say SOURCE=TOKENS"),
        (["tiny", *SIZE, "--assume", "captions=x"], "such as captions=38+1"),
        (["tiny", *SIZE, "--assume", "video=3"], "'video' is none of the sources (text, captions)"),
        (["--run", "gone"], "config.yaml: cannot be read"),
        (["tiny", *SIZE, "--run", "gone"], "metrics.jsonl: cannot be read"),
        (["tiny", "--schedule.lrr", "1"], "schedule.lrr: unknown key; did you mean 'lr'"),
    ],
)
def test_errors_name_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["curriculum", "show", *arguments]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""


def test_another_word_than_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["curriculum", "draw", "tiny"]) == 2
    assert "say `megatron-vlm curriculum show CONFIG`" in capsys.readouterr().err


def test_a_run_without_a_step_says_so(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "metrics.jsonl").write_text('{"kind": "eval", "step": 0, "losses": {}}\n', encoding="utf-8")
    assert cli.main(["curriculum", "show", "--run", str(finished)]) == 2
    assert "has no step that says what it was trained on" in capsys.readouterr().err


def test_no_torch_is_needed(data: list[str], tmp_path: Path) -> None:
    script = (
        "import sys; from megatron_vlm.cli.main import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules, 'torch was imported'; assert 'numpy' in sys.modules; sys.exit(code)"
    )
    arguments = ["curriculum", "show", "tiny", *data, *SIZE, "--out", str(tmp_path / "plan.svg")]
    result = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Pictures enter" in result.stdout
