"""Show what a .bin/.idx dataset or a checkpoint holds.

  megatron-vlm inspect data/images
  megatron-vlm inspect data/images --documents 0:5 --tokenizer tokenizer/
  megatron-vlm inspect data/images --document 7 --tokenizer tokenizer/ --save-images pictures/
  megatron-vlm inspect data/images --histogram
  megatron-vlm inspect data/images --contact-sheet sheet.html --pictures 60 --tokenizer tokenizer/
  megatron-vlm inspect runs/demo/checkpoints/step-00000100 --verify

In documents, what a model is trained to say is marked "learnt", and what it only reads, such as a user's turn, "read".
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_vlm.data.indexed_reader import IndexedReader
    from megatron_vlm.data.tokenizer import Tokenizer

SHEET_SUFFIXES = (".html", ".png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PREFIX", help="a dataset (path without suffix) or a checkpoint folder")
    parser.add_argument("--document", type=int, metavar="N", help="show the parts of this document, counted from 0")
    parser.add_argument(
        "--documents", metavar="A:B", help="show documents A up to but not B as they read; A: and :B work too"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer.json or its folder, to show text")
    parser.add_argument("--save-images", type=Path, metavar="DIR", help="save the pictures of --document here")
    parser.add_argument("--histogram", action="store_true", help="how tokens, images and sizes of pictures are spread")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE", help="pictures with captions, as .html or .png")
    parser.add_argument("--pictures", type=int, default=100, metavar="N", help="on the contact sheet (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other pictures (default: %(default)s)")
    parser.add_argument("--verify", action="store_true", help="compare a checkpoint's files with their checksums")
    parser.add_argument("--json", action="store_true", help="print the same as json")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.cli.dataset_argument import dataset_prefix
    from megatron_vlm.data.indexed_reader import IndexedReader
    from megatron_vlm.data.tokenizer import Tokenizer
    from megatron_vlm.errors import ConfigError, DataError

    path: Path = args.path
    if path.is_dir():
        if not _holds_checkpoint(path):
            raise DataError(
                f"{path} is a folder that holds no checkpoint; a dataset is named by its prefix, the path of its .bin "
                "without the suffix"
            )
        from megatron_vlm.cli.quiet import quiet_host_warnings

        quiet_host_warnings()
        from megatron_vlm.training.checkpoint import describe_checkpoint

        print(describe_checkpoint(path, args.verify))
        return 0
    if args.document is None and args.save_images is not None:
        raise ConfigError("--save-images saves the pictures of one document: add --document N")
    if args.contact_sheet is not None and args.contact_sheet.suffix not in SHEET_SUFFIXES:
        raise ConfigError(f"--contact-sheet {args.contact_sheet} ends with neither .html nor .png; name a file that does")
    if args.pictures < 1:
        raise ConfigError(f"--pictures is {args.pictures}; a contact sheet has 1 or more")
    reader = IndexedReader(dataset_prefix(path))
    tokenizer = Tokenizer.load(args.tokenizer) if args.tokenizer is not None else None
    if args.document is not None:
        if not 0 <= args.document < reader.document_count:
            raise DataError(f"{path} has {reader.document_count} documents, counted from 0; there is no {args.document}")
        for line in describe_document(reader, args.document, tokenizer, args.save_images):
            print(line)
    elif args.contact_sheet is not None:
        print(write_contact_sheet(reader, tokenizer, args.contact_sheet, args.pictures, args.seed))
    elif args.documents is not None:
        show_documents(reader, parse_range(args.documents, reader.document_count), tokenizer, args.json)
    else:
        show_dataset(reader, args.histogram, args.seed, args.json)
    return 0


def _holds_checkpoint(folder: Path) -> bool:
    """A step's folder, or a run's. Told by file names, so that a mistyped dataset is answered without loading torch."""
    return any(next(folder.glob(f"{where}metadata.json"), None) for where in ("", "step-*/", "checkpoints/step-*/"))


def parse_range(text: str, count: int) -> range:
    """ "3:7", "3:", ":7" or "3" -> the documents that it means of `count`.

    Raises ConfigError for anything else, DataError where it begins beyond the last document.
    """
    from megatron_vlm.errors import ConfigError, DataError

    first, colon, after = text.partition(":")
    try:
        start = int(first or 0) if colon else int(first)
        stop = int(after or count) if colon else start + 1
    except ValueError:
        start = stop = -1
    if start < 0 or stop < start:
        raise ConfigError(f"--documents {text} is no range of documents; say 0:10 for the first ten")
    if start >= count and not (after and stop == start):
        raise DataError(f"there are {count} documents, counted from 0; there is no {start}")
    return range(start, min(stop, count))


def show_dataset(reader: IndexedReader, with_histogram: bool, seed: int, as_json: bool) -> None:
    """Print the summary of a dataset."""
    from megatron_vlm.data.histogram import dataset_histograms
    from megatron_vlm.data.sequence_facts import open_sequence_facts

    histograms = []
    if with_histogram:
        histograms = dataset_histograms(reader, open_sequence_facts(reader.prefix, reader.sequence_count), seed)
    if as_json:
        spread = {"histograms": [one.as_json() for one in histograms]} if with_histogram else {}
        print(json.dumps({**dataset_summary(reader), **spread}, indent=2))
        return
    print(describe_dataset(reader))
    for one in histograms:
        print(f"\n{one.describe()}")


def show_documents(reader: IndexedReader, documents: range, tokenizer: Tokenizer | None, as_json: bool) -> None:
    """Print documents as a person reads them, or a line of json each."""
    from dataclasses import asdict

    from megatron_vlm.data.sequence_facts import open_sequence_facts
    from megatron_vlm.data.shown_document import describe_document as describe
    from megatron_vlm.data.shown_document import shown_parts

    facts = open_sequence_facts(reader.prefix, reader.sequence_count)
    if not as_json and (careful := _careful(reader, tokenizer)):
        print(f"{careful}\n")
    for document in documents:
        parts = list(shown_parts(reader, document, tokenizer, facts))
        if as_json:
            print(json.dumps({"document": document, "parts": [asdict(part) for part in parts]}))
        else:
            print(f"{describe(document, parts)}\n")


def write_contact_sheet(reader: IndexedReader, tokenizer: Tokenizer | None, file: Path, pictures: int, seed: int) -> str:
    """Write the sheet; what to tell of it. Raises DataError for a dataset without pictures."""
    from megatron_vlm.data import atomic_file
    from megatron_vlm.data.contact_sheet import draw_entries, sheet_page, sheet_picture
    from megatron_vlm.errors import DataError

    entries = draw_entries(reader, tokenizer, pictures, seed)
    if not entries:
        raise DataError(f"{reader.prefix} has no pictures to show; --documents shows its text")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".html":
        atomic_file.write_text(file, sheet_page(reader.prefix.name, entries))
    else:
        atomic_file.partial_path(file).write_bytes(sheet_picture(reader.prefix.name, entries))
        atomic_file.commit(file)
    hint = "" if tokenizer is not None else "; with --tokenizer, captions are text"
    careful = _careful(reader, tokenizer)
    return f"Wrote {file}: {len(entries):,} pictures{hint}" + (f"\n{careful}" if careful else "")


def _careful(reader: IndexedReader, tokenizer: Tokenizer | None) -> str | None:
    expected = reader.metadata.get("tokenizer_fingerprint")
    if tokenizer is None or expected in (None, tokenizer.fingerprint):
        return None
    return "careful: this is not the tokenizer that the dataset was made with, so the text is wrong"


def dataset_summary(reader: IndexedReader) -> dict[str, Any]:
    """What `describe_dataset` tells, for a program."""
    summary: dict[str, Any] = {
        "prefix": str(reader.prefix),
        "multimodal": reader.multimodal,
        "dtype": str(reader.dtype),
        "fingerprint": reader.fingerprint,
        "documents": reader.document_count,
        "sequences": reader.sequence_count,
    }
    if reader.document_count:
        for name, counts in (("tokens", reader.document_text_tokens()), ("images", reader.document_images())):
            spread = {"total": int(counts.sum()), "min": int(counts.min()), "max": int(counts.max())}
            summary[name] = {**spread, "mean": float(counts.mean())}
    return {**summary, "metadata": reader.metadata}


def describe_dataset(reader: IndexedReader) -> str:
    """A summary of a dataset, some lines of text."""
    tokens, images = reader.document_text_tokens(), reader.document_images()
    known = reader.metadata
    kind = "text and pictures" if reader.multimodal else "text"
    lines = [
        f"{reader.prefix}: {kind}, {reader.dtype}, fingerprint {reader.fingerprint[:16]}",
        f"  documents  {reader.document_count:,} in {reader.sequence_count:,} sequences",
    ]
    if reader.document_count:
        lines.append(
            f"  tokens     {tokens.sum():,} (a document: {tokens.min():,} to {tokens.max():,}, mean {tokens.mean():,.1f})"
        )
        lines.append(f"  images     {images.sum():,} (a document: {images.min():,} to {images.max():,})")
    if not known:
        return "\n".join([*lines, "  no .json beside it: written by another tool"])
    lines.append(f"  tokenizer  {known.get('vocab_size')} tokens, {str(known.get('tokenizer_fingerprint'))[:16]}")
    settings = f" with {known['settings']}" if "settings" in known else ""
    lines.append(f"  written by {known.get('tool')} {known.get('tool_version')}{settings}")
    for origin in known.get("merged_from", []):
        lines.append(f"  merged of  {origin['prefix']}: {origin['documents']:,} documents")
    if "sampled_from" in known:
        origin = dict(known["sampled_from"])
        lines.append(f"  sampled of {origin['prefix']}: {origin['documents']:,} documents, seed {origin['seed']}")
    for source in known.get("sources", []):
        documents = f"{source['documents']:,} documents of " if "documents" in source else ""  # not known of some samples
        lines.append(
            f"  source     {source['path']}: {documents}{source['records']:,} records, sha256 {source['sha256'][:16]}"
        )
    for reason, count in known.get("quarantine", {}).items():
        lines.append(f"  set aside  {count:,} {reason}")
    return "\n".join(lines)


def describe_document(
    reader: IndexedReader, document: int, tokenizer: Tokenizer | None, save_images: Path | None
) -> list[str]:
    """One line a part of a document, in reading order; writes its pictures into `save_images` if that is
    given.
    """
    from megatron_vlm.data.shown_document import shown_text

    careful = _careful(reader, tokenizer)
    lines = [f"{reader.prefix}, document {document}", *([f"  {careful}"] if careful else [])]
    for sequence in reader.document_sequences(document):
        if reader.modes[sequence]:
            lines.append(_describe_image(reader, sequence, f"{document:08d}-{sequence}", save_images))
            continue
        ids = reader.tokens(sequence)
        text = shown_text(reader, document, ids, tokenizer)
        lines.append(f"  text   {len(ids)} tokens: {text if tokenizer is None else repr(text)}")
    return lines


def _describe_image(reader: IndexedReader, sequence: int, name: str, save_images: Path | None) -> str:
    from PIL import Image

    encoded = reader.image_bytes(sequence)
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            suffix = (picture.format or "bin").lower()
            shape = f"{picture.width} x {picture.height} {picture.mode}"
            line = f"  image  {picture.format} {shape}, {len(encoded):,} bytes"
    except Exception:  # Pillow raises whatever it likes on damaged headers
        suffix, line = "bin", f"  image  in a form that Pillow does not know, {len(encoded):,} bytes"
    if save_images is None:
        return line
    save_images.mkdir(parents=True, exist_ok=True)
    path = save_images / f"{name}.{suffix}"
    path.write_bytes(encoded)
    return f"{line}, saved as {path}"
