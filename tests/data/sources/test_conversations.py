"""The field's forms of conversations become the same document, and each kind of broken one is told apart."""

from __future__ import annotations

import gzip
import json
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Picture, Record, Text
from megatron_vlm.data.sources.chat_template import BUILT_IN
from megatron_vlm.data.sources.conversations import ConversationSource
from megatron_vlm.data.sources.picture_store import FolderPictures, picture_store
from megatron_vlm.errors import ConfigError

MakeTar = Callable[[str, Sequence[tuple[str, bytes]]], Path]
Outcome = Record | Rejection


def read(source: ConversationSource, path: Path, target: int = 1 << 30) -> list[Outcome]:
    return [outcome for unit in source.units(str(path), path.stat().st_size, target) for outcome in source.read(unit)]


def outcome_of(record: Any, tmp_path: Path, **settings: Any) -> Outcome:
    path = tmp_path / "one.jsonl"
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    settings.setdefault("pictures", FolderPictures(str(tmp_path)))
    (outcome,) = read(ConversationSource(**settings), path)
    return outcome


def document_of(record: Any, tmp_path: Path, **settings: Any) -> tuple[Any, ...]:
    outcome = outcome_of(record, tmp_path, **settings)
    assert isinstance(outcome, Record), outcome
    (document,) = outcome.documents
    return document


def says(*values: str) -> list[dict[str, str]]:
    return [{"from": ("gpt" if index % 2 else "human"), "value": value} for index, value in enumerate(values)]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name[:1].encode())
    return tmp_path


ONE = (Text("User: ", False), Picture(b"a"), Text("\nwhat?\nAssistant:", False), Text(" it\n", True))


@pytest.mark.parametrize(
    "record",
    [
        {"image": "a.jpg", "conversations": says("<image>\nwhat?", "it")},
        {"image": ["a.jpg"], "conversations": says("<image>\nwhat?", "it")},
        {"images": [{"bytes": None, "path": "a.jpg"}], "messages": [
            {"role": "user", "content": "<image>\nwhat?"}, {"role": "assistant", "content": "it"}]},
        {"images": ["a.jpg"], "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nwhat?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "it"}]}]},
        {"images": ["a.jpg"], "messages": [
            {"role": "user", "content": [{"type": "image", "index": 0, "text": None}, "\nwhat?"]},
            {"role": "assistant", "content": ["i", "t"]}]},
        {"messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "\nwhat?"}]},
            {"role": "assistant", "content": "it"}]},
        {"messages": [
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,YQ=="}}, "\nwhat?"]},
            {"role": "assistant", "content": "it"}]},
        {"images": ["a.jpg"], "texts": [{"user": "\nwhat?", "assistant": "it", "source": "VQA"}]},
    ],
)  # fmt: skip
def test_all_forms_give_the_same_document(record: dict[str, Any], images: Path) -> None:
    assert document_of(record, images) == ONE


def test_several_pictures_stand_where_the_text_has_them(images: Path) -> None:
    record = {"id": 7, "image": ["a.jpg", "b.jpg"], "conversations": says("x <image> y", "one", "and <image>?", "two")}
    outcome = outcome_of(record, images)
    assert isinstance(outcome, Record)
    assert (outcome.key, outcome.number, outcome.offset) == ("7", 0, 0)
    assert outcome.bytes_read == (images / "one.jsonl").stat().st_size
    assert outcome.documents == (
        (
            Text("User: x ", False),
            Picture(b"a"),
            Text(" y\nAssistant:", False),
            Text(" one\n", True),
            Text("User: and ", False),
            Picture(b"b"),
            Text("?\nAssistant:", False),
            Text(" two\n", True),
        ),
    )


def test_indices_choose_pictures_and_may_repeat_one(images: Path) -> None:
    content = [{"type": "image", "index": 1}, {"type": "image", "index": 0}, {"type": "image", "index": 1}]
    record = {"images": ["a.jpg", "b.jpg"], "messages": [{"role": "user", "content": content}, says("", "x")[1]]}
    pictures = [part.encoded for part in document_of(record, images) if isinstance(part, Picture)]
    assert pictures == [b"b", b"a", b"b"]


def test_text_alone_a_system_turn_and_templates(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "be brief"}, *says("hi", "hello")]
    assert document_of({"image": None, "conversations": turns}, tmp_path) == (
        Text("be brief\nUser: hi\nAssistant:", False),
        Text(" hello\n", True),
    )
    document = document_of({"conversations": turns}, tmp_path, template=BUILT_IN["chatml"])
    assert document[-4:-1] == (Text("assistant\n", False), Text("hello", True), Text("<|im_end|>", True, True))


def test_another_placeholder(images: Path) -> None:
    record = {"image": "a.jpg", "conversations": says("[IMG]<image>", "it")}
    document = document_of(record, images, placeholder="[IMG]")
    assert document[1:3] == (Picture(b"a"), Text("<image>\nAssistant:", False))


def test_pictures_out_of_a_tar(make_tar: MakeTar, tmp_path: Path) -> None:
    store = picture_store(str(make_tar("p.tar", [("x/a.jpg", b"a")])))
    assert document_of({"image": "x/a.jpg", "conversations": says("<image>\nwhat?", "it")}, tmp_path, pictures=store) == ONE


BROKEN: list[tuple[Any, Reason, str]] = [
    ("{", Reason.BROKEN_JSON, "unexpected|Expecting"),
    ("[]", Reason.BROKEN_JSON, "an array where"),
    ({"id": "x"}, Reason.MISSING_TEXT, "it has 'id'"),
    ({"conversations": None}, Reason.MISSING_TEXT, "none of the fields"),
    ({"conversations": []}, Reason.BROKEN_CONVERSATION, "empty"),
    ({"conversations": "hi"}, Reason.BROKEN_CONVERSATION, "no list"),
    ({"conversations": ["hi"]}, Reason.BROKEN_CONVERSATION, "turn 1 is a str"),
    ({"texts": ["hi"]}, Reason.BROKEN_CONVERSATION, "turn 1 is a str"),
    ({"texts": [{"user": "hi"}]}, Reason.BROKEN_CONVERSATION, "turn 1 says a NoneType"),
    ({"conversations": [{"from": "tool", "value": "x"}]}, Reason.BROKEN_CONVERSATION, "'tool'; known"),
    ({"conversations": [{"from": ["human"], "value": "x"}]}, Reason.BROKEN_CONVERSATION, "known"),
    ({"conversations": [{"from": "human", "value": 5}]}, Reason.BROKEN_CONVERSATION, "says a int"),
    ({"conversations": [*says("a", "b")[:1] * 2]}, Reason.BROKEN_CONVERSATION, "turn 2 is the user's, after the user's"),
    ({"conversations": says("a", "b")[1:]}, Reason.BROKEN_CONVERSATION, "turn 1 is the assistant's, the first"),
    ({"conversations": says("a", "b", "c")}, Reason.BROKEN_CONVERSATION, "last turn"),
    ({"conversations": [{"from": "system", "value": "x"}]}, Reason.BROKEN_CONVERSATION, "last turn"),
    (
        {"conversations": [*says("a", "b"), {"from": "system", "value": "x"}]},
        Reason.BROKEN_CONVERSATION,
        "turn 3 is the system's, after the assistant's",
    ),
    ({"conversations": says(" ", "b")}, Reason.BROKEN_CONVERSATION, "turn 1 is empty"),
    ({"conversations": says("a", "\n")}, Reason.BROKEN_CONVERSATION, "turn 2 is empty"),
    ({"image": "a.jpg", "conversations": says("a", "<image>")}, Reason.BROKEN_CONVERSATION, "no word of the assistant's"),
    ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, Reason.BROKEN_CONVERSATION, "'audio'; known"),
    ({"messages": [{"role": "user", "content": [5]}]}, Reason.BROKEN_CONVERSATION, "type None"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, Reason.BROKEN_CONVERSATION, "NoneType"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "index": "0"}]}]}, Reason.BROKEN_CONVERSATION, "index"),
    ({"conversations": says("a", "\ud800")}, Reason.INVALID_UNICODE, "turn 2"),
    ({"image": "a.jpg", "conversations": says("a", "b")}, Reason.IMAGE_MISMATCH, "places for 0 pictures, and 1"),
    ({"conversations": says("<image>a", "b")}, Reason.IMAGE_MISMATCH, "places for 1 pictures, and 0"),
    ({"image": ["a.jpg"], "conversations": says("<image><image>", "b")}, Reason.IMAGE_MISMATCH, "for 2 pictures, and 1"),
    ({"image": ["a.jpg", "b.jpg", "a.jpg"], "conversations": says("<image><image>", "b")}, Reason.IMAGE_MISMATCH, "2 .* 3"),
    (
        {"image": "a.jpg", "messages": [{"role": "user", "content": [{"type": "image", "index": -1}]}, says("", "b")[1]]},
        Reason.IMAGE_MISMATCH,
        "places for 1",
    ),
    ({"image": "none.jpg", "conversations": says("<image>", "b")}, Reason.MISSING_IMAGE, "none.jpg"),
    ({"image": [None], "conversations": says("<image>", "b")}, Reason.MISSING_IMAGE, "None"),
    ({"image": 5, "conversations": says("<image>", "b")}, Reason.MISSING_IMAGE, "5"),
    ({"image": "../x.jpg", "conversations": says("<image>", "b")}, Reason.ESCAPING_PATH, "leads out"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "reason", "detail"), BROKEN)
def test_what_is_broken_is_told_apart(record: Any, reason: Reason, detail: str, images: Path) -> None:
    outcome = outcome_of(record, images)
    assert isinstance(outcome, Rejection)
    assert outcome.reason is reason
    assert re.search(detail, outcome.detail)
    assert outcome.file == str(images / "one.jsonl")
    assert outcome.bytes_read == (images / "one.jsonl").stat().st_size


def test_no_store_and_too_many_pictures(images: Path) -> None:
    record = {"id": "k", "image": ["a.jpg", "b.jpg"], "conversations": says("<image><image>", "b")}
    outcome = outcome_of(record, images, pictures=None)
    assert isinstance(outcome, Rejection)
    assert (outcome.key, outcome.reason) == ("k", Reason.MISSING_IMAGE)
    assert "no folder or tar" in outcome.detail
    outcome = outcome_of(record, images, max_pictures=1)
    assert isinstance(outcome, Rejection)
    assert outcome.reason is Reason.TOO_MANY_IMAGES
    assert isinstance(outcome_of(record, images, max_pictures=2), Record)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="placeholder"):
        ConversationSource(placeholder="")
    with pytest.raises(ConfigError, match="max_pictures"):
        ConversationSource(max_pictures=0)


def mixed_records(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"r{n}",
            "image": "a.jpg" if n % 3 else None,
            "conversations": says("<image>" * bool(n % 3) + f"q{n}", "é" * n),
        }
        for n in range(count)
    ]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "json.gz", "lines.json", "parquet"])
@pytest.mark.parametrize("target", [1, 150, 1 << 30])
def test_containers_and_cuts_change_nothing(form: str, target: int, images: Path) -> None:
    records = mixed_records(30)
    path = images / f"data.{form}"
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=4)
    elif form.startswith("json."):
        path.write_bytes(gzip.compress(json.dumps(records, indent=1).encode()))
    elif form == "json":
        path.write_text(json.dumps(records, indent=1))
    else:
        pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(form.rsplit(".", 1)[-1], bytes)
        path.write_bytes(pack(lines))
    source = pickle.loads(pickle.dumps(ConversationSource(FolderPictures(str(images)))))
    units = source.units(str(path), path.stat().st_size, target)
    assert sum(unit.size for unit in units) == path.stat().st_size
    assert (len(units) > 5) == (target < 1000 and form in ("jsonl", "lines.json", "parquet"))
    outcomes: list[Outcome] = []
    for unit in units:
        found = list(source.read(unit))
        assert [outcome.number for outcome in found] == list(range(len(found)))
        reached = [outcome.bytes_read for outcome in found]
        assert reached == sorted(reached)
        assert all(0 <= at <= unit.size for at in reached)
        outcomes += found
    assert [outcome.key for outcome in outcomes] == [f"r{number}" for number in range(30)]
    plain = images / "plain.jsonl"
    plain.write_bytes(lines)
    expected = read(source, plain)
    assert outcomes[0] != expected[1]
    for outcome, wanted in zip(outcomes, expected, strict=True):
        assert isinstance(wanted, (Record, Rejection))
        assert type(outcome) is type(wanted)
        if isinstance(outcome, Record) and isinstance(wanted, Record):
            assert outcome.documents == wanted.documents
        if isinstance(outcome, Rejection) and isinstance(wanted, Rejection):
            assert outcome.reason is wanted.reason is Reason.BROKEN_CONVERSATION
    assert isinstance(outcomes[0], Rejection)  # "é" * 0


def test_a_broken_array_keeps_what_comes_before(images: Path) -> None:
    path = images / "a.json"
    path.write_text(json.dumps([{"id": "x", "conversations": says("a", "b")}, "no object"])[:-1] + ', {"id": ')
    good, odd, rest = read(ConversationSource(), path)
    assert isinstance(good, Record)
    assert isinstance(odd, Rejection)
    assert odd.reason is Reason.BROKEN_JSON
    assert isinstance(rest, Rejection)
    assert (rest.reason, rest.number, rest.bytes_read) == (Reason.BROKEN_FILE, 2, path.stat().st_size)
    assert rest.offset == path.stat().st_size
    assert "ends inside an element" in rest.detail


def test_both_forms_of_turns_inside_parquet(tmp_path: Path) -> None:
    """A column has one struct, so each turn has the other form's fields too, as null."""
    names = {"human": "user", "gpt": "assistant"}
    newer = [{"role": names[turn["from"]], "content": turn["value"]} for turn in says("a", "b")]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"conversations": [says("a", "b"), newer]}), path)
    assert set(pq.read_table(path).to_pylist()[1]["conversations"][0]) == {"from", "value", "role", "content"}
    documents = [outcome.documents for outcome in read(ConversationSource(), path) if isinstance(outcome, Record)]
    assert len(documents) == 2
    assert documents[0] == documents[1]


def test_pictures_inside_parquet(tmp_path: Path) -> None:
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("id", pa.string()), ("image", picture), ("conversations", pa.list_(pa.struct(
        [("from", pa.string()), ("value", pa.string())])))])  # fmt: skip
    row = {"id": "x", "image": {"bytes": b"a", "path": None}, "conversations": says("<image>\nwhat?", "it")}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([row], schema), path)
    (record,) = read(ConversationSource(), path)
    assert isinstance(record, Record)
    assert record.documents == (ONE,)


WORDS = ["human", "gpt", "user", "assistant", "<image>", "a.jpg", "text", "image"]
FIELDS = ["from", "value", "role", "content", "type", "image", "url", "image_url", "index", "text", "user", "assistant"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(FIELDS), inner, max_size=4
    ),
    max_leaves=15,
)  # fmt: skip
RECORDS = st.dictionaries(st.sampled_from(["id", "image", "images", "conversations", "messages", "texts"]), JSON, max_size=4)


@settings(max_examples=60)
@given(records=st.lists(RECORDS, min_size=1, max_size=5))
def test_no_json_makes_the_reader_raise(records: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    outcomes = read(ConversationSource(FolderPictures(str(folder))), path)
    assert [outcome.number for outcome in outcomes] == list(range(len(records)))
