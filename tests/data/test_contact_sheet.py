"""A contact sheet shows the pictures that the seed draws, what is said with them, and nothing that runs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_vlm.data.contact_sheet import LONGEST_CAPTION, draw_entries, sheet_page, sheet_picture, thumbnail
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.indexed_writer import IndexedWriter
from megatron_vlm.data.tokenizer import Tokenizer

CAPTIONS = (
    'a "red" square',
    "<script>alert(1)</script>",
    "</figcaption><img src=x onerror=alert(1)>",
    "& blue\ncircle",
    "\u56fe" * 400,
)


@pytest.fixture
def reader(tmp_path: Path, tokenizer: Tokenizer, make_picture: Callable[..., bytes]) -> IndexedReader:
    with IndexedWriter(tmp_path / "d", np.int32, multimodal=True) as writer:
        for number, caption in enumerate(CAPTIONS):
            writer.add_image(make_picture("PNG", 500 + number, 300))
            writer.add_text([*tokenizer.encode(caption), tokenizer.eod_id])
            writer.end_document()
        writer.add_text(tokenizer.encode("text before"))
        writer.add_image(b"no picture")
        writer.end_document()
        writer.add_image(make_picture("JPEG", 4, 300))
        writer.end_document()
    return IndexedReader(tmp_path / "d")


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.captions: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "p" and dict(attrs).get("class") == "caption":
            self.captions.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "p" and self.captions:
            self.captions[-1] += data


def test_a_page(reader: IndexedReader, tokenizer: Tokenizer) -> None:
    page = Page(sheet_page("<d>", draw_entries(reader, tokenizer, 100, 0)))
    assert page.open == []
    long = "\u56fe" * LONGEST_CAPTION + "\u2026"
    assert page.captions == [*CAPTIONS[:3], "& blue circle", long, "text before", ""]
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "b"})
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 6  # the seventh does not decode
    for attributes in pictures:
        head, data = str(attributes["src"]).split(",", 1)
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert max(picture.size) <= 384
    names = [attributes.get("name") for tag, attributes in page.tags if tag == "meta"]
    assert "viewport" in names


def test_what_is_drawn(reader: IndexedReader, tokenizer: Tokenizer) -> None:
    everything = draw_entries(reader, tokenizer, 100, 0)
    assert [entry.document for entry in everything] == list(range(7))
    some = draw_entries(reader, tokenizer, 3, 5)
    assert some == draw_entries(reader, tokenizer, 3, 5)
    assert len({entry.sequence for entry in some}) == 3
    assert any(draw_entries(reader, tokenizer, 3, seed) != some for seed in range(5))
    assert draw_entries(reader, None, 100, 0)[0].caption.startswith("[")
    assert everything[0].title.startswith("document 0 [image 500x300 PNG ")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_picture_of_pictures(reader: IndexedReader, tokenizer: Tokenizer, count: int) -> None:
    with Image.open(io.BytesIO(sheet_picture("d", draw_entries(reader, tokenizer, count, 0)))) as sheet:
        assert sheet.format == "PNG"
        assert sheet.height == (1 if count < 7 else 2) * (sheet.height // (1 if count < 7 else 2))
        assert sheet.width == {1: 480, 2: 528, 7: 6 * 256 + 16}[count]
        colours = sheet.convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert (80, 175, 7) in {colour for _, colour in colours}  # of the pictures on it


def test_thumbnails() -> None:
    def encoded(picture: Image.Image, form: str = "PNG") -> bytes:
        stream = io.BytesIO()
        picture.save(stream, form)
        return stream.getvalue()

    half = Image.new("RGBA", (20, 10), (255, 0, 0, 0))
    small = thumbnail(encoded(half), 10)
    assert small is not None
    assert (small.size, small.mode, small.getpixel((0, 0))) == ((10, 5), "RGB", (255, 255, 255))
    deep = thumbnail(encoded(Image.fromarray(np.full((4, 4), 40000, np.uint16))), 10)
    assert deep is not None
    assert deep.getpixel((0, 0)) == (156, 156, 156)
    assert thumbnail(encoded(Image.new("L", (3, 3), 9), "JPEG"), 10) is not None
    assert thumbnail(b"nothing", 10) is None


def test_a_thumbnail_is_upright() -> None:
    """A photograph taken with the camera turned: stored on its side, and EXIF says so."""
    stored = Image.new("RGB", (40, 20), "white")
    stored.paste((255, 0, 0), (0, 0, 20, 20))  # left as stored, above as shown
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    stored.save(stream, "JPEG", exif=exif, quality=95)
    small = thumbnail(stream.getvalue(), 40)
    assert small is not None
    assert small.size == (20, 40)
    above, below = small.getpixel((10, 5)), small.getpixel((10, 35))
    assert isinstance(above, tuple)
    assert isinstance(below, tuple)
    assert above[1] < 40
    assert below[1] > 215
