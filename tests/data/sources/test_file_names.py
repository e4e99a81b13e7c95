"""What a name says, and which names lead out of a folder."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.sources.file_names import base_name, folder_of, inner_path, is_remote


def test_names_of_files() -> None:
    assert is_remote("s3://bucket/a")
    assert not is_remote("/a://b")
    assert base_name("https://host/a/b.json?x=/y") == "b.json"
    assert folder_of("s3://bucket/a/b.jsonl") == "s3://bucket/a"
    assert folder_of("a/b.jsonl") == "a"
    assert folder_of("b.jsonl") == "."


@pytest.mark.parametrize("name", ["..", "../a", "a/../../b", "/a", "//a", "..\\a", "a\\..\\..\\b", "\\a"])
def test_names_that_lead_out(name: str) -> None:
    assert inner_path(name) is None


def test_names_that_stay_inside() -> None:
    assert inner_path("./a//b/../c.jpg") == "a/c.jpg"
    assert inner_path("a\\b.jpg") == "a\\b.jpg"
    assert inner_path("...") == "..."


@given(st.text(max_size=30) | st.lists(st.sampled_from(["..", ".", "a", "", "b", "\\"])).map("/".join))
def test_plain_forms_stay_inside(name: str) -> None:
    clean = inner_path(name)
    assert clean is None or posixpath.commonpath(["/x", posixpath.normpath(f"/x/{clean}")]) == "/x"
