"""Objects beside a folder of pictures: LLaVA's array and plain lines; no path leads out of the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.data.captions import CaptionChoice
from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Picture, Record, Text
from megatron_vlm.data.sources.caption_rule import caption_rule
from megatron_vlm.data.sources.image_text_jsonl import ImageTextJsonl

ReadSource = Callable[..., list[Record | Rejection]]


def turns(*said: Any, speakers: tuple[str, ...] = ("human", "gpt")) -> list[dict[str, Any]]:
    return [{"from": speaker, "value": value} for speaker, value in zip(speakers, said, strict=True)]


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def only(read_source: ReadSource, path: Path, record: Any, source: ImageTextJsonl | None = None) -> Record | Rejection:
    (outcome,) = read_source(source or ImageTextJsonl(), write_lines(path / "a.jsonl", record))
    return outcome


def test_llava_pretraining_data_is_recognised(tmp_path: Path, read_source: ReadSource) -> None:
    (tmp_path / "images" / "00").mkdir(parents=True)
    records = []
    for n in range(3):
        (tmp_path / "images" / "00" / f"{n}.jpg").write_bytes(b"J%d" % n)
        said = turns("Describe it.\n<image>", f"caption {n}")
        records.append({"id": f"00{n}", "image": f"00/{n}.jpg", "conversations": said})
    path = tmp_path / "blip_laion_cc_sbu_558k.json"
    path.write_text(json.dumps(records, indent=1))
    outcomes = read_source(ImageTextJsonl(folder=str(tmp_path / "images")), path, 10)
    assert [(o.key, o.documents) for o in outcomes if isinstance(o, Record)] == [
        (f"00{n}", ((Picture(b"J%d" % n), Text(f"caption {n}")),)) for n in range(3)
    ]
    path.write_text(json.dumps(records)[:-30])
    *_, last = read_source(ImageTextJsonl(folder=str(tmp_path / "images")), path)
    assert isinstance(last, Rejection)
    assert (last.reason, last.number) == (Reason.BROKEN_FILE, 2)


def test_lines_beside_their_pictures(tmp_path: Path, read_source: ReadSource) -> None:
    (tmp_path / "x.png").write_bytes(b"P")
    lines = [
        {"image": "x.png", "caption": " a "},
        {"image": "./x.png", "text": ["b", "c"]},
        {"id": 3, "image": "x.png", "caption": None, "text": "d", "meta": {"alt": "e"}},
    ]
    path = write_lines(tmp_path / "a.jsonl", *lines)
    whole = read_source(ImageTextJsonl(), path)
    assert [(o.key, o.documents) for o in whole if isinstance(o, Record)] == [
        ("x.png", ((Picture(b"P"), Text("a")),)),
        ("./x.png", ((Picture(b"P"), Text("b")),)),
        ("3", ((Picture(b"P"), Text("d")),)),
    ]
    assert [(o.key, o.offset) for o in read_source(ImageTextJsonl(), path, 20)] == [(o.key, o.offset) for o in whole]
    source = ImageTextJsonl(caption_rule({"text": 1, "meta.alt": 1}, CaptionChoice.ALL))
    found = [len(o.documents) if isinstance(o, Record) else o.reason for o in read_source(source, path)]
    assert found == [Reason.MISSING_CAPTION, 2, 2]


def test_pictures_are_looked_for_where_one_is_told(tmp_path: Path, read_source: ReadSource) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.png").write_bytes(b"P")
    source = ImageTextJsonl(image="file", folder=str(tmp_path / "elsewhere"))
    assert isinstance(only(read_source, tmp_path, {"file": "x.png", "caption": "a"}, source), Record)


ESCAPES = ["../secret", "a/../../secret", "/etc/passwd", "..", "out.png", "away/secret", "loop/../../secret", "..\\secret"]


@pytest.mark.parametrize("path", ESCAPES)
def test_paths_that_lead_out_of_the_folder_are_rejected(tmp_path: Path, read_source: ReadSource, path: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"S")
    (folder / "out.png").symlink_to(tmp_path / "secret")
    (folder / "away").symlink_to(tmp_path)
    outcome = only(read_source, tmp_path, {"image": path, "caption": "a"}, ImageTextJsonl(folder=str(folder)))
    assert isinstance(outcome, Rejection)
    assert outcome.reason is Reason.ESCAPING_PATH


def test_links_within_the_folder_are_followed(tmp_path: Path, read_source: ReadSource) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.png").write_bytes(b"P")
    (tmp_path / "real" / "link.png").symlink_to("x.png")
    (tmp_path / "folder").symlink_to("real")
    source = ImageTextJsonl(folder=str(tmp_path / "folder"))
    assert isinstance(only(read_source, tmp_path, {"image": "link.png", "caption": "a"}, source), Record)


BAD = [
    ({"caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": None, "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "", "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": ["x.png"], "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "none.png", "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "empty.png", "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "folder", "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "pipe", "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "loop", "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "x.png/y", "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "x\0.png", "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "x" * 5000, "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "\ud800", "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "https://host/x.png", "caption": "a"}, Reason.MISSING_IMAGE),
    ({"image": "x.png"}, Reason.MISSING_CAPTION),
    ({"image": "x.png", "caption": 5}, Reason.MISSING_CAPTION),
    ({"image": "x.png", "caption": " "}, Reason.EMPTY_TEXT),
    ({"image": "x.png", "caption": "\ud800"}, Reason.INVALID_UNICODE),
    ({"image": "x.png", "conversations": turns("a", "")}, Reason.EMPTY_TEXT),
    ({"image": "x.png", "conversations": "a"}, Reason.BROKEN_CONVERSATION),
    ({"image": "x.png", "conversations": []}, Reason.BROKEN_CONVERSATION),
    ({"image": "x.png", "conversations": ["a", "b"]}, Reason.BROKEN_CONVERSATION),
    ({"image": "x.png", "conversations": turns("a", 5)}, Reason.BROKEN_CONVERSATION),
    ({"image": "x.png", "conversations": turns("a", "b", speakers=("gpt", "human"))}, Reason.BROKEN_CONVERSATION),
    ({"image": "x.png", "conversations": turns("a", "b") * 2}, Reason.BROKEN_CONVERSATION),
    ([], Reason.BROKEN_JSON),
]


@pytest.mark.parametrize(("record", "reason"), BAD, ids=range(len(BAD)))
def test_a_bad_record_is_rejected_by_reason(tmp_path: Path, read_source: ReadSource, record: Any, reason: Reason) -> None:
    (tmp_path / "x.png").write_bytes(b"P")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    outcome = only(read_source, tmp_path, record)
    assert isinstance(outcome, Rejection)
    assert outcome.reason is reason


def test_pictures_of_a_remote_folder(tmp_path: Path, read_source: ReadSource) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://pictures/x.png", "wb") as stream:
        stream.write(b"P")
    source = ImageTextJsonl(folder="memory://pictures")
    assert isinstance(only(read_source, tmp_path, {"image": "x.png", "caption": "a"}, source), Record)
    missing = only(read_source, tmp_path, {"image": "y.png", "caption": "a"}, source)
    assert isinstance(missing, Rejection)
    assert missing.reason is Reason.MISSING_IMAGE
