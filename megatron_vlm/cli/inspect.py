"""Show what a .bin/.idx dataset or a checkpoint holds.

megatron-vlm inspect data/images
megatron-vlm inspect data/images --document 7 --tokenizer tokenizer/ --save-images pictures/
megatron-vlm inspect runs/demo/checkpoints/step-100
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_vlm.data.indexed_reader import IndexedReader
    from megatron_vlm.data.tokenizer import Tokenizer

SHOWN_IDS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PREFIX", help="a dataset (path without suffix) or a checkpoint folder")
    parser.add_argument("--document", type=int, metavar="N", help="show the parts of this document, counted from 0")
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="tokenizer.json or its folder, to show text")
    parser.add_argument("--save-images", type=Path, metavar="DIR", help="save the pictures of --document here")


def run(args: argparse.Namespace) -> int:
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

        print(describe_checkpoint(path))
        return 0
    if path.suffix in (".bin", ".idx"):
        path = path.with_suffix("")
    reader = IndexedReader(path)
    if args.document is None:
        if args.save_images is not None:
            raise ConfigError("--save-images saves the pictures of one document: add --document N")
        print(describe_dataset(reader))
        return 0
    if not 0 <= args.document < reader.document_count:
        raise DataError(f"{path} has {reader.document_count} documents, counted from 0; there is no {args.document}")
    tokenizer = Tokenizer.load(args.tokenizer) if args.tokenizer is not None else None
    for line in describe_document(reader, args.document, tokenizer, args.save_images):
        print(line)
    return 0


def _holds_checkpoint(folder: Path) -> bool:
    """A step's folder, or a run's. Told by file names, so that a mistyped dataset is answered without loading torch."""
    return any(next(folder.glob(f"{where}metadata.json"), None) for where in ("", "step-*/", "checkpoints/step-*/"))


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
    lines.append(f"  written by {known.get('tool')} {known.get('tool_version')} with {known.get('settings')}")
    for source in known.get("sources", []):
        lines.append(
            f"  source     {source['path']}: {source['documents']:,} documents of "
            f"{source['records']:,} records, "
            f"sha256 {source['sha256'][:16]}"
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
    from megatron_vlm.errors import DataError

    expected = reader.metadata.get("tokenizer_fingerprint")
    lines = [f"{reader.prefix}, document {document}"]
    if tokenizer is not None and expected not in (None, tokenizer.fingerprint):
        lines.append("  careful: this is not the tokenizer that the dataset was made with, so the text is wrong")
    for sequence in reader.document_sequences(document):
        if reader.modes[sequence]:
            lines.append(_describe_image(reader, sequence, f"{document:08d}-{sequence}", save_images))
            continue
        ids = reader.tokens(sequence)
        if tokenizer is not None:
            if ids.size and int(ids.max()) >= tokenizer.vocab_size:
                raise DataError(
                    f"{reader.prefix}: document {document} has token {int(ids.max())}, and the "
                    "tokenizer has only "
                    f"{tokenizer.vocab_size}: give the one that the dataset was made with"
                )
            lines.append(f"  text   {len(ids)} tokens: {tokenizer.decode(ids.tolist())!r}")
        else:
            more = " ..." if len(ids) > SHOWN_IDS else ""
            lines.append(f"  text   {len(ids)} tokens: {ids[:SHOWN_IDS].tolist()}{more}")
    return lines


def _describe_image(reader: IndexedReader, sequence: int, name: str, save_images: Path | None) -> str:
    from PIL import Image, UnidentifiedImageError

    encoded = reader.image_bytes(sequence)
    try:
        with Image.open(io.BytesIO(encoded)) as picture:
            suffix = (picture.format or "bin").lower()
            shape = f"{picture.width} x {picture.height} {picture.mode}"
            line = f"  image  {picture.format} {shape}, {len(encoded):,} bytes"
    except UnidentifiedImageError:
        suffix, line = "bin", f"  image  in a form that Pillow does not know, {len(encoded):,} bytes"
    if save_images is None:
        return line
    save_images.mkdir(parents=True, exist_ok=True)
    path = save_images / f"{name}.{suffix}"
    path.write_bytes(encoded)
    return f"{line}, saved as {path}"
