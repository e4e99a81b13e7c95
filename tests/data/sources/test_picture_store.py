"""Pictures by name, from folders and tars; no name leads out of either."""

from __future__ import annotations

import base64
import hashlib
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.sources import picture_store as module
from megatron_vlm.data.sources.opening import input_file
from megatron_vlm.data.sources.picture_store import (
    FolderPictures,
    PictureNaming,
    PictureStore,
    TarNames,
    TarPictures,
    may_be_there,
    picture_store,
    read_picture,
    store_names,
)
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import ConfigError, DataError

MakeTar = Callable[[str, Sequence[tuple[str, bytes]]], Path]


def reason(store: PictureStore | None, reference: Any, naming: PictureNaming = PictureNaming.PATH) -> Reason:
    with pytest.raises(Unusable) as caught:
        read_picture(reference, store, naming)
    return caught.value.reason


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """images/a/b.jpg and what lies around it."""
    images = tmp_path / "images"
    (images / "a").mkdir(parents=True)
    (images / "a" / "b.jpg").write_bytes(b"B")
    (tmp_path / "secret").write_bytes(b"S")
    (tmp_path / "images2").mkdir()
    (tmp_path / "images2" / "c.jpg").write_bytes(b"C")
    return images


def test_a_folder_gives_what_is_in_it(folder: Path) -> None:
    store = picture_store(str(folder))
    store.check()
    assert isinstance(store, FolderPictures)
    for name in ("a/b.jpg", "./a//b.jpg", "a/../a/b.jpg", str(folder / "a/b.jpg")):
        assert store.read(name) == b"B"
        assert pickle.loads(pickle.dumps(store)).read(name) == b"B"


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd", "..", ".", "../images2/c.jpg", ""])
def test_no_name_leads_out_of_a_folder(name: str, follow: bool, folder: Path) -> None:
    with pytest.raises(Unusable) as caught:
        FolderPictures(str(folder), follow).read(name)
    assert caught.value.reason is Reason.ESCAPING_PATH


def test_links_lead_out_only_where_they_may(folder: Path) -> None:
    (folder / "inside.jpg").symlink_to("a/b.jpg")
    (folder / "outside.jpg").symlink_to(folder.parent / "secret")
    (folder / "other").symlink_to(folder.parent)
    store = FolderPictures(str(folder))
    assert store.read("inside.jpg") == b"B"
    assert reason(store, "outside.jpg") is Reason.ESCAPING_PATH
    assert reason(store, "other/secret") is Reason.ESCAPING_PATH
    following = FolderPictures(str(folder), follow_links=True)
    assert following.read("outside.jpg") == b"S"
    assert reason(following, "other/../../secret") is Reason.ESCAPING_PATH
    # the folder itself may be a link
    (folder.parent / "linked").symlink_to(folder)
    assert FolderPictures(str(folder.parent / "linked")).read("a/b.jpg") == b"B"


@pytest.mark.parametrize(
    "name", ["a", "a/none.jpg", "a/b.jpg/c", "x" * 5000, "a\0b", "\ud800.jpg", "http://x/y.jpg", "pipe"]
)
def test_what_is_no_file_is_missing(name: str, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert reason(FolderPictures(str(folder)), name) is Reason.MISSING_IMAGE


def test_huge_files_are_not_taken_into_memory(folder: Path, make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_FILE", 0)
    assert reason(FolderPictures(str(folder)), "a/b.jpg") is Reason.OVERSIZED_IMAGE
    assert reason(picture_store(str(make_tar("p.tar", [("b.jpg", b"B")]))), "b.jpg") is Reason.OVERSIZED_IMAGE


def test_a_folder_that_is_none_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        FolderPictures(str(tmp_path / "none")).check()


def test_tars_give_what_is_in_any_of_them(make_tar: MakeTar, tmp_path: Path) -> None:
    make_tar("p0.tar", [("./a/b.jpg", b"B"), ("c.jpg", b"CC")])
    make_tar("p1.tar", [("a/d.jpg", b"DDD"), ("../secret.jpg", b"S"), ("/rooted.jpg", b"R"), ("a/empty.jpg", b"")])
    store = picture_store(str(tmp_path / "p*.tar"))
    assert isinstance(store, TarPictures)
    store.check()
    for name, content in {"a/b.jpg": b"B", "c.jpg": b"CC", "./a/d.jpg": b"DDD"}.items():
        assert store.read(name) == content
        assert pickle.loads(pickle.dumps(store)).read(name) == content
    assert len(pickle.dumps(store)) < 1000  # the index stays behind
    assert reason(store, "b.jpg") is Reason.MISSING_IMAGE
    for name in ("../secret.jpg", "/rooted.jpg", "..", "a/../../c.jpg"):
        assert reason(store, name) is Reason.ESCAPING_PATH
    for name in ("secret.jpg", "rooted.jpg", "", "a", "\ud800", "a/empty.jpg"):
        assert reason(store, name) is Reason.MISSING_IMAGE


def test_tars_by_file_name(make_tar: MakeTar) -> None:
    members = [("x/a.jpg", b"A"), ("y/b.jpg", b"B"), ("z/b.jpg", b"Z")]
    store = picture_store([str(make_tar("p.tar", members))], names="file_name")
    assert store.read("any/where/a.jpg") == b"A"
    assert reason(store, "b.jpg") is Reason.DUPLICATE_MEMBER
    assert picture_store(str(make_tar("p.tar", members)), names=TarNames.PATH).read("z/b.jpg") == b"Z"


def test_a_tar_that_was_changed_is_read_anew(make_tar: MakeTar) -> None:
    assert picture_store(str(make_tar("p.tar", [("a.jpg", b"A")]))).read("a.jpg") == b"A"
    assert picture_store(str(make_tar("p.tar", [("0.jpg", b"0" * 9999), ("a.jpg", b"B")]))).read("a.jpg") == b"B"


def test_a_tar_that_is_named_twice_is_read_once(make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_tar("p.tar", [("a.jpg", b"A")])
    monkeypatch.chdir(path.parent)
    assert picture_store(["p.tar", str(path), "./p.tar"]).read("a.jpg") == b"A"


def test_files_of_a_store(make_tar: MakeTar, folder: Path) -> None:
    tar = make_tar("p.tar", [("a.jpg", b"A")])
    assert picture_store(str(folder)).files() == []
    assert picture_store(str(tar)).files() == [input_file(str(tar))]


@pytest.mark.parametrize("naming", [PictureNaming.PATH, PictureNaming.URL_MD5])
def test_where_an_absent_picture_would_lie(naming: PictureNaming, folder: Path, make_tar: MakeTar) -> None:
    with pytest.raises(Unusable) as caught:
        read_picture("a/none.jpg", FolderPictures(str(folder)), naming)
    absent = caught.value.absent
    assert [os.path.relpath(place, folder) for place in absent] == list(store_names("a/none.jpg", naming))
    assert not any(map(may_be_there, absent))
    Path(absent[-1]).touch()  # a copy that has just begun
    assert not may_be_there(absent[-1])
    Path(absent[-1]).write_bytes(b"P")
    assert may_be_there(absent[-1])
    assert may_be_there("s3://bucket/none.jpg")
    assert not may_be_there("a\0b")
    with pytest.raises(Unusable) as caught:
        read_picture("none.jpg", picture_store(str(make_tar("p.tar", [("a.jpg", b"A")]))), naming)
    assert caught.value.absent == ()


@given(name=st.text(max_size=12) | st.sampled_from(["../x", "a/../..", "/", "./", "a//b", "\0", "..", "...", "a" * 400]))
def test_no_name_raises_anything_but_a_defect(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "names"
    folder.mkdir(exist_ok=True)
    assert reason(FolderPictures(str(folder)), name or "a") in (Reason.MISSING_IMAGE, Reason.ESCAPING_PATH)


@pytest.mark.parametrize(
    ("places", "error", "says"),
    [
        ([], ConfigError, "no place"),
        (["a.tar.gz"], ConfigError, "compressed"),
        (["a.zip"], ConfigError, "compressed"),
        (["a", "b"], ConfigError, "2 folders"),
        (["a.tar", "b"], ConfigError, "no .tar"),
        (["none/*.tar"], DataError, "no input file"),
    ],
)
def test_places_that_cannot_be_used(places: list[str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        picture_store(places)


URL = "http://example.org/x%20y/cat.jpg?width=5"


@pytest.mark.parametrize("naming", list(PictureNaming))
def test_a_url_leads_to_a_file(naming: PictureNaming, tmp_path: Path) -> None:
    digest = {
        PictureNaming.URL_SHA256: hashlib.sha256(URL.encode()).hexdigest() + ".png",
        PictureNaming.URL_SHA1: hashlib.sha1(URL.encode()).hexdigest(),
        PictureNaming.URL_MD5: hashlib.md5(URL.encode()).hexdigest() + ".jpg",
        PictureNaming.FILE_NAME: "cat.jpg",
    }
    store = FolderPictures(str(tmp_path))
    assert reason(store, URL, naming) is Reason.MISSING_IMAGE
    if naming in digest:
        (tmp_path / digest[naming]).write_bytes(b"cat")
        assert read_picture(URL, store, naming) == b"cat"
        assert reason(store, URL.replace("?", "/?"), naming) is Reason.MISSING_IMAGE
    assert reason(store, "http://[x/..", naming) in (Reason.MISSING_IMAGE, Reason.ESCAPING_PATH)


def test_pictures_in_the_record_itself(folder: Path) -> None:
    assert read_picture(b"X", None) == b"X"
    assert read_picture({"bytes": b"X", "path": "a/b.jpg"}, None) == b"X"
    assert read_picture({"bytes": None, "path": "a/b.jpg"}, FolderPictures(str(folder))) == b"B"
    assert read_picture("data:image/png;base64," + base64.b64encode(b"X").decode(), None) == b"X"
    bad = ["a.jpg", "", None, 5, [], {}, {"bytes": None, "path": None}, {"bytes": "X"}, "data:,X"]
    bad += ["data:image/png;base64", "data:image/png;base64,=", "data:image/png;base64,é", "data:image/png;base64,A A"]
    for reference in bad:
        assert reason(None, reference) is Reason.MISSING_IMAGE
