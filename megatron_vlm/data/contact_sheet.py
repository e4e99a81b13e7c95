"""Pictures of a dataset with their captions, side by side: a page for a browser, or one large picture."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_vlm.data.encoded_pictures.decoded import set_upright
from megatron_vlm.data.encoded_pictures.picture_header import read_header
from megatron_vlm.data.indexed_format import IMAGE_MODE
from megatron_vlm.data.indexed_reader import IndexedReader
from megatron_vlm.data.order import epoch_order
from megatron_vlm.data.shown_document import picture_line, printable, shown_text
from megatron_vlm.data.tokenizer import END_OF_DOCUMENT, Tokenizer

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

LONGEST_CAPTION = 280  # characters
_PAGE_SIDE = 384  # pixels of a picture's longer side on the page
_CELL, _GAP, _COLUMNS, _CAPTION_LINES = 240, 16, 6, 4  # of the large picture, in pixels and lines

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8888; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 110rem; }
h1 { font-size: 1.2rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
p { margin: 0 0 1rem; opacity: .75; }
main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(11rem, 100%), 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: .5rem; overflow: hidden; display: flex;
  flex-direction: column; }
.picture { background: var(--line); aspect-ratio: 1; display: flex; align-items: center; justify-content: center; }
img { width: 100%; height: 100%; object-fit: contain; display: block; }
.broken { padding: 1rem; text-align: center; opacity: .75; font-size: .85rem; }
figcaption { padding: .5rem .6rem .6rem; }
.caption { margin: 0 0 .4rem; opacity: 1; overflow-wrap: anywhere; white-space: pre-line; }
small { opacity: .7; font-variant-numeric: tabular-nums; }
""".strip()


@dataclass(frozen=True, slots=True)
class SheetEntry:
    """A picture and what is said with it.

    Attributes:
        document, sequence: where it is in the dataset.
        encoded: its bytes.
        caption: the text that follows it, or what comes before it where nothing follows; shortened.
    """

    document: int
    sequence: int
    encoded: bytes
    caption: str

    @property
    def title(self) -> str:
        """Which it is, and how large."""
        return f"document {self.document:,} {picture_line(self.encoded)}"


def draw_entries(reader: IndexedReader, tokenizer: Tokenizer | None, pictures: int, seed: int) -> list[SheetEntry]:
    """So many pictures drawn by a seed, without replacement, in the order of the dataset.

    Raises DataError for a picture's record or a token id that is damaged.
    """
    chosen = np.sort(epoch_order(np.flatnonzero(reader.modes == IMAGE_MODE), seed, "pictures", 0)[:pictures])
    entries = []
    for sequence in chosen.tolist():
        document = reader.document_of_sequence(sequence)
        caption = _caption(reader, document, sequence, tokenizer)
        entries.append(SheetEntry(document, sequence, reader.image_bytes(sequence), caption))
    return entries


def _caption(reader: IndexedReader, document: int, picture: int, tokenizer: Tokenizer | None) -> str:
    sequences = reader.document_sequences(document)
    after = [s for s in range(picture + 1, sequences.stop) if reader.modes[s] != IMAGE_MODE]
    before = [s for s in range(picture - 1, sequences.start - 1, -1) if reader.modes[s] != IMAGE_MODE]
    for sequence in [*after, *before]:
        # four ids for a character are more than any tokenizer needs, and a long document's text is not decoded whole
        count = min(int(reader.sequence_lengths[sequence]), 4 * LONGEST_CAPTION)
        text = shown_text(reader, document, reader.tokens(sequence, 0, count), tokenizer).removesuffix(END_OF_DOCUMENT)
        if text.strip():
            plain = " ".join(printable(text).split())
            return plain if len(plain) <= LONGEST_CAPTION else plain[:LONGEST_CAPTION].rstrip() + "\u2026"
    return ""


def sheet_page(title: str, entries: Sequence[SheetEntry]) -> str:
    """One HTML page that needs nothing beside it: pictures are in it, made smaller, and no script is."""
    figures = "\n".join(_figure(entry) for entry in entries)
    name = html.escape(printable(title))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{name}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<h1>{name}</h1>
<p>{len(entries):,} pictures with the text beside them</p>
<main>
{figures}
</main>
</body>
</html>
"""


def _figure(entry: SheetEntry) -> str:
    caption, title = html.escape(entry.caption), html.escape(entry.title)
    small = thumbnail(entry.encoded, _PAGE_SIDE)
    if small is None:
        shown = '<span class="broken">does not decode</span>'
    else:
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=82)
        data = base64.b64encode(stream.getvalue()).decode()
        shown = f'<img loading="lazy" alt="{caption}" src="data:image/jpeg;base64,{data}">'
    return (
        f'<figure><div class="picture">{shown}</div><figcaption><p class="caption" dir="auto">{caption}</p>'
        f"<small>{title}</small></figcaption></figure>"
    )


def thumbnail(encoded: bytes, side: int) -> Image.Image | None:
    """A picture with its longer side at most `side`, upright and in RGB on white as training sees it; None if it does not
    decode."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as opened:
                opened.draft("RGB", (side, side))
                picture: Image.Image = opened
                if picture.mode == "I" or picture.mode.startswith("I;16"):
                    picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
                picture = picture.convert("RGBA")
                picture.thumbnail((side, side))
                header = read_header(encoded)
                picture = set_upright(picture, header.orientation if header is not None else 1)
                return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    except Exception:  # decoders raise whatever they like on damaged input
        return None


def sheet_picture(title: str, entries: Sequence[SheetEntry]) -> bytes:
    """The same as one PNG, six pictures to a row."""
    from PIL import Image, ImageDraw

    font, small = _font(15), _font(12)
    line = 19
    cell = _CELL + line * (_CAPTION_LINES + 1) + 10
    columns = max(1, min(_COLUMNS, len(entries)))
    rows = -(-len(entries) // columns)
    top = _GAP + 30
    width = max(columns * (_CELL + _GAP) + _GAP, 480)
    sheet = Image.new("RGB", (width, top + rows * (cell + _GAP) + _GAP // 2), "white")
    draw = ImageDraw.Draw(sheet)
    heading = next(_lines(draw, f"{printable(title)}: {len(entries):,} pictures", font, width - 2 * _GAP, 1), "")
    draw.text((_GAP, _GAP), heading, "black", font)
    for number, entry in enumerate(entries):
        left = _GAP + number % columns * (_CELL + _GAP)
        upper = top + number // columns * (cell + _GAP)
        draw.rectangle((left, upper, left + _CELL - 1, upper + _CELL - 1), "#eeeeee")
        picture = thumbnail(entry.encoded, _CELL)
        if picture is None:
            draw.text((left + 10, upper + 10), "does not decode", "black", font)
        else:
            sheet.paste(picture, (left + (_CELL - picture.width) // 2, upper + (_CELL - picture.height) // 2))
        at = upper + _CELL + 4
        about = next(_lines(draw, entry.title.replace(" [image", "").rstrip("]"), small, _CELL, 1), "")
        draw.text((left, at), about, "#666666", small)
        for text in _lines(draw, entry.caption, font, _CELL, _CAPTION_LINES):
            at += line
            draw.text((left, at), text, "black", font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()


def _font(size: int) -> Any:
    """One with as many scripts as the system has, else Pillow's own, which has Latin letters alone."""
    from PIL import ImageFont

    for name in ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _lines(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> Iterator[str]:
    """Text in at most `most` lines that are no wider than `width`; cut within words where a word is wider."""
    rest = " ".join(text.split())
    for number in range(most):
        if not rest:
            return
        fits = _fitting(draw, rest, font, width)
        if fits < len(rest):
            space = rest.rfind(" ", 1, fits + 1)
            fits = space if space > 0 else fits
            if number == most - 1:
                yield rest[: max(_fitting(draw, rest, font, width - 14), 1)].rstrip() + "\u2026"
                return
        yield rest[:fits]
        rest = rest[fits:].lstrip()


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """How many characters fit, at least one."""
    low, high = 1, min(len(text), 200)
    while low < high:
        middle = (low + high + 1) // 2
        if draw.textlength(text[:middle], font=font) <= width:
            low = middle
        else:
            high = middle - 1
    return low
