"""Pictures keep their places among the texts; missing ones and too many are dealt with as asked."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vlm.data.quarantine import Reason, Rejection
from megatron_vlm.data.records import Record, Text
from megatron_vlm.data.sources.interleaved import BeyondLimit, InterleavedSource, MissingPicture
from megatron_vlm.data.sources.picture_store import FolderPictures, PictureNaming, picture_store
from megatron_vlm.errors import ConfigError

MakeTar = Callable[[str, Sequence[tuple[str, bytes]]], Path]
Outcome = Record | Rejection


def read(source: InterleavedSource, path: Path, target: int = 1 << 30) -> list[Outcome]:
    return [outcome for unit in source.units(str(path), path.stat().st_size, target) for outcome in source.read(unit)]


def outcome_of(record: Any, folder: Path, **settings: Any) -> Outcome:
    path = folder / "one.jsonl"
    path.write_text(json.dumps(record))
    settings.setdefault("pictures", FolderPictures(str(folder)))
    (outcome,) = read(InterleavedSource(**settings), path)
    return outcome


def shown(outcome: Outcome) -> str:
    """A document at a glance: texts as they are, pictures in angle brackets."""
    assert isinstance(outcome, Record), outcome
    (document,) = outcome.documents
    assert all(part.learnt and not part.special for part in document if isinstance(part, Text))
    return "|".join(part.text if isinstance(part, Text) else f"<{part.encoded.decode()}>" for part in document)


def rejected(outcome: Outcome) -> tuple[Reason, str]:
    assert isinstance(outcome, Rejection), outcome
    return outcome.reason, outcome.detail


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    return tmp_path


def obelics(*pieces: str, **fields: Any) -> dict[str, Any]:
    """ "a.jpg" and URLs are pictures, anything else is text."""
    pictures = [piece if piece.endswith(".jpg") else None for piece in pieces]
    return {
        "images": pictures,
        "texts": [None if picture else piece for piece, picture in zip(pieces, pictures, strict=True)],
        "metadata": "[]",
        **fields,
    }


def mmc4(texts: list[Any], *pictures: tuple[Any, Any, Any]) -> dict[str, Any]:
    keys = ("image_name", "matched_text_index", "matched_sim")
    return {
        "url": "http://example.org",
        "text_list": texts,
        "image_info": [dict(zip(keys, picture, strict=True)) for picture in pictures],
        "similarity_matrix": [[0.1] * len(texts)] * len(pictures),
    }


def test_obelics_in_its_order(images: Path) -> None:
    record = obelics("one", "two", "a.jpg", "three", "b.jpg", "c.jpg", " four\n", id="k")
    outcome = outcome_of(record, images)
    assert shown(outcome) == "one\n\ntwo|<a>|three|<b>|<c>| four\n"
    assert (outcome.key, outcome.number, outcome.offset) == ("k", 0, 0)
    assert shown(outcome_of(obelics("one", " \n", "two", "a.jpg"), images, separator="~")) == "one~two|<a>"
    both = {"images": ["a.jpg", None, ""], "texts": ["one", "two", "three"]}
    assert shown(outcome_of(both, images)) == "<a>|one\n\ntwo\n\nthree"
    assert shown(outcome_of({"texts": ["one", None, "two"]}, images)) == "one\n\ntwo"


def test_mmc4_pictures_come_before_their_sentence(images: Path) -> None:
    record = mmc4(["one.", "two.", "three."], ("c.jpg", 1, 0.3), ("a.jpg", 0, 0.2), ("b.jpg", 1, 0.1))
    outcome = outcome_of(record, images)
    assert shown(outcome) == "<a>|one.|<c>|<b>|two. three."
    assert outcome.key == "http://example.org"
    assert shown(outcome_of(record, images, min_similarity=0.2)) == "<a>|one.|<c>|two. three."
    assert shown(outcome_of(record, images, min_similarity=0.9)) == "one. two. three."
    assert shown(outcome_of(mmc4(["one.", "two."], ("a.jpg", 1, None)), images, min_similarity=0.0)) == "one. two."
    assert shown(outcome_of({"text_list": ["one.", "two."]}, images, separator="\n")) == "one.\ntwo."


def test_missing_pictures_go_alone_or_with_their_document(images: Path) -> None:
    record = obelics("one", "none.jpg", "two", "a.jpg")
    assert shown(outcome_of(record, images)) == "one\n\ntwo|<a>"
    assert rejected(outcome_of(record, images, missing=MissingPicture.REJECT))[0] is Reason.MISSING_IMAGE
    reason, detail = rejected(outcome_of(obelics("one", "x.jpg", "y.jpg"), images))
    assert reason is Reason.MISSING_IMAGE
    assert "none of its 2 pictures" in detail
    assert "'x.jpg'" in detail
    reason, detail = rejected(outcome_of(obelics("one", "a.jpg"), images, pictures=None))
    assert "no folder or tar" in detail
    # a name that leads out is no accident
    assert rejected(outcome_of(obelics("one", "a.jpg", "../b.jpg"), images))[0] is Reason.ESCAPING_PATH


@pytest.mark.parametrize(
    ("beyond", "expected"),
    [(BeyondLimit.DROP, "one|<a>|<b>|two\n\nthree"), (BeyondLimit.CUT, "one|<a>|<b>|two"), (BeyondLimit.REJECT, None)],
)
def test_too_many_pictures(beyond: BeyondLimit, expected: str | None, images: Path) -> None:
    record = obelics("one", "none.jpg", "a.jpg", "b.jpg", "two", "c.jpg", "three", "b.jpg")
    outcome = outcome_of(record, images, max_pictures=2, beyond=beyond)
    if expected is None:
        assert rejected(outcome) == (Reason.TOO_MANY_IMAGES, "more than 2 pictures")
    else:
        assert shown(outcome) == expected
    fitting = obelics("one", "none.jpg", "a.jpg", "b.jpg", "x.jpg", "two")
    assert shown(outcome_of(fitting, images, max_pictures=2, beyond=beyond)) == "one|<a>|<b>|two"


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"id": "x"}, Reason.MISSING_TEXT, "it has 'id'"),
        ({"texts": "one"}, Reason.MISSING_TEXT, "'texts' is a str"),
        ({"texts": ["one", 5]}, Reason.MISSING_TEXT, "texts[1] is a int"),
        ({"texts": ["one"], "images": "a.jpg"}, Reason.MISSING_TEXT, "'images' is a str"),
        ({"texts": ["one"], "images": []}, Reason.IMAGE_MISMATCH, "1 texts beside 0"),
        ({"texts": ["\ud800"]}, Reason.INVALID_UNICODE, "texts[0]"),
        ({"texts": []}, Reason.EMPTY_TEXT, "no text"),
        ({"texts": [None, " "], "images": ["a.jpg", None]}, Reason.EMPTY_TEXT, "no text"),
        ({"texts": ["one"], "images": [5]}, Reason.MISSING_IMAGE, "5 where the name"),
        ({"text_list": "one"}, Reason.MISSING_TEXT, "'text_list' is a str"),
        (mmc4(["one", None]), Reason.MISSING_TEXT, "text_list[1]"),
        ({"text_list": ["one"], "image_info": {}}, Reason.MISSING_TEXT, "'image_info' is a dict"),
        ({"text_list": ["one"], "image_info": ["a.jpg"]}, Reason.IMAGE_MISMATCH, "image_info[0] is a str"),
        (mmc4(["one"], ("a.jpg", 1, 0.5)), Reason.IMAGE_MISMATCH, "sentence 1 of 1"),
        (mmc4(["one"], ("a.jpg", -1, 0.5)), Reason.IMAGE_MISMATCH, "sentence -1"),
        (mmc4(["one"], ("a.jpg", None, 0.5)), Reason.IMAGE_MISMATCH, "sentence None"),
        (mmc4(["one"], (None, 0, 0.5)), Reason.MISSING_IMAGE, "None where the name"),
    ],
)
def test_what_is_broken_is_told_apart(record: Any, reason: Reason, detail: str, images: Path) -> None:
    found = rejected(outcome_of(record, images))
    assert found[0] is reason
    assert detail in found[1]


def test_a_document_cut_before_its_first_word(images: Path) -> None:
    outcome = outcome_of(obelics("a.jpg", "b.jpg", "one"), images, max_pictures=1, beyond=BeyondLimit.CUT)
    assert rejected(outcome) == (Reason.EMPTY_TEXT, "no text before picture 2, where it is cut")


def test_pictures_by_url_from_a_tar(make_tar: MakeTar, tmp_path: Path) -> None:
    url = "http://example.org/a.jpg"
    digest = hashlib.sha256(url.encode()).hexdigest()
    store = picture_store(str(make_tar("p.tar", [(f"{digest}.jpg", b"a")])))
    assert shown(outcome_of(obelics("one", url), tmp_path, pictures=store, naming=PictureNaming.URL_SHA256)) == "one|<a>"
    record = {"text_list": ["one"], "image_info": [{"raw_url": url, "matched_text_index": 0}]}
    settings = {"pictures": store, "naming": PictureNaming.URL_SHA256, "image_name_key": "raw_url"}
    assert shown(outcome_of(record, tmp_path, **settings)) == "<a>|one"


@pytest.mark.parametrize("key", ["images", "image_bytes"])
def test_pictures_inside_parquet(key: str, tmp_path: Path) -> None:
    schema = pa.schema([("texts", pa.list_(pa.string())), (key, pa.list_(pa.binary())), ("rest", pa.string())])
    row = {"texts": ["one", None, "two"], key: [None, b"a", None], "rest": "not read"}
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([row], schema), path)
    (record,) = read(InterleavedSource(image_key=key), path)
    assert shown(record) == "one|<a>|two"


@pytest.mark.parametrize("target", [1, 200, 1 << 30])
def test_containers_and_cuts_change_nothing(target: int, images: Path) -> None:
    records = [obelics("one", "abc"[number % 3] + ".jpg", "x" * number, url=f"u{number}") for number in range(20)]
    lines, table = images / "a.jsonl", images / "a.parquet"
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    pq.write_table(pa.Table.from_pylist(records), table, row_group_size=3)
    source = pickle.loads(pickle.dumps(InterleavedSource(FolderPictures(str(images)))))
    expected = [(f"u{number}", f"one|<{'abc'[number % 3]}>" + "|" * bool(number) + "x" * number) for number in range(20)]
    for path in (lines, table):
        outcomes = read(source, path, target)
        assert [(outcome.key, shown(outcome)) for outcome in outcomes] == expected
    assert [outcome.offset for outcome in read(source, table, target)] == list(range(20))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="max_pictures"):
        InterleavedSource(max_pictures=0)
    with pytest.raises(ConfigError, match="min_similarity"):
        InterleavedSource(min_similarity=float("nan"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.text(max_size=5) | st.just("a.jpg"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["image_name", "matched_text_index", "matched_sim", "bytes", "path"]), inner, max_size=4
        )
    ),
    max_leaves=15,
)
RECORDS = st.dictionaries(st.sampled_from(["id", "url", "images", "texts", "text_list", "image_info"]), JSON, max_size=4)


@settings(max_examples=60)
@given(records=st.lists(RECORDS, min_size=1, max_size=5), similarity=st.none() | st.floats(0, 1))
def test_no_json_makes_the_reader_raise(
    records: list[Any], similarity: float | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    outcomes = read(InterleavedSource(FolderPictures(str(folder)), min_similarity=similarity), path)
    assert [outcome.number for outcome in outcomes] == list(range(len(records)))
