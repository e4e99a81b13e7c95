"""Groups of a tar that are as nearly all are take a short way, which gives what the long one gives."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from megatron_vlm.data.records import Record, Unit
from megatron_vlm.data.sources.image_text_tar import ImageTextTar, _usual
from megatron_vlm.data.sources.tar_groups import Group, _split

UNIT = Unit("x.tar", 0, 1, 1 << 20)
TEXTS = [b"a cat", b"  caf\xc3\xa9 \n", b"\xef\xbb\xbfmarked", b"\xff", b"   ", b"", "中文".encode(), b"\x00"]
DESCRIPTIONS = [
    b"{}",
    b'{"status": "success", "caption": "other"}',
    b'{"status": null}',
    b'{"status": "failed_to_download", "error_message": "404"}',
    b'{"status": ["success"]}',
    b'{"status": NaN}',
    b"[1]",
    b'{"caption": "broken',
    b"\xef\xbb\xbf{}",
]


@given(
    st.sampled_from([None, *TEXTS]),
    st.sampled_from([None, *DESCRIPTIONS]),
    st.sampled_from([None, b"picture"]),
    st.booleans(),
)
def test_the_short_way_gives_what_the_long_one_does(
    text: bytes | None, described: bytes | None, image: bytes | None, json_first: bool
) -> None:
    parts = {"image": image, **({"json": described, "txt": text} if json_first else {"txt": text, "json": described})}
    group = Group("key", 512, {part: content for part, content in parts.items() if content is not None}, 99)
    judged = ImageTextTar()._judge(UNIT, group, 3)
    document = _usual(group)
    if document is not None:
        assert isinstance(judged, Record)
        assert judged.documents == (document,)
    usual = text in TEXTS[:2] and (described is None or described in DESCRIPTIONS[:3]) and image is not None
    assert (document is not None) or not usual


@given(st.text(alphabet="aB./\n ", max_size=12))
def test_names_are_split_at_the_first_dot_of_the_file(name: str) -> None:
    match = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", name, re.DOTALL)
    key, suffix = _split(name)
    assert (key, suffix) == (match[1], match[2].lower()) if match is not None else not suffix
