"""Turn text, captioned pictures, conversations or interleaved documents into Megatron's indexed format.

  megatron-vlm preprocess text          --input 'prose/*.jsonl.zst'  --output data/prose  --tokenizer tokenizer/
  megatron-vlm preprocess image-text    --input 'images/train-*.tar' --output data/images --tokenizer tokenizer/
  megatron-vlm preprocess conversations --input llava_v1_5_mix665k.json --images images/ --template chatml ...
  megatron-vlm preprocess interleaved   --input 'obelics/*.parquet' --images 'pictures-*.tar' ...

Writes OUTPUT.bin and OUTPUT.idx (megatron-core's IndexedDataset opens them), OUTPUT.sequences.npy (sizes of pictures, and
what of the text is learnt), OUTPUT.json (what is in them and where it came from) and, if any record could not be used,
OUTPUT.quarantine.jsonl (which and why). The same inputs give the same bytes, whatever --workers is. Nothing has its final
name before everything is written.

A run that was interrupted, by whatever, goes on when the same command is given again: finished parts lie in OUTPUT.parts.
Exit codes: 0 done; 2 wrong arguments or input; 3 done, and more than --max-lost of the records could not be used.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_vlm.data.building.options import BuildOptions

TOO_MANY_LOST = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(
        dest="kind", metavar="{text,image-text,conversations,interleaved}", required=True, title="kinds"
    )

    def kind(name: str, summary: str) -> argparse.ArgumentParser:
        made = kinds.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        _add_common(made)
        return made

    text = kind("text", "documents: .jsonl .json .ndjson .parquet .txt, .tar of .json, also .gz .zst .bz2 .xz; - is .jsonl")
    text.add_argument("--key", default="text", help="field or column that holds the text (default: %(default)s)")
    text.add_argument(
        "--separator", help=r"what parts the documents of a .txt, such as '\n\n' (default: a file is a document)"
    )

    pictures = kind("image-text", "captioned pictures: .tar as img2dataset writes them, .parquet, .jsonl or LLaVA .json")
    pictures.add_argument(
        "--caption-key",
        metavar="FIELD",
        help="field with the caption, such as json:caption of a tar (default: the .txt, else 'caption')",
    )
    pictures.add_argument(
        "--caption-weights",
        metavar="FIELD=WEIGHT,...",
        help="draw one of several fields for each record, such as txt=0.3,json:syn_text=0.7",
    )
    pictures.add_argument(
        "--caption-choice",
        choices=("first", "sample", "all"),
        default="first",
        help="of a list of captions, take the first, one drawn by --seed and key, or a document for each "
        "(default: %(default)s)",
    )
    pictures.add_argument("--image-key", metavar="FIELD", help="column with the picture, or field with its path")
    pictures.add_argument("--image-folder", metavar="DIR", help="where the pictures of a list lie (default: beside it)")

    talk = kind("conversations", "LLaVA or chat .json, .jsonl, .parquet: the assistant's words are learnt, the rest is read")
    talk.add_argument(
        "--template",
        default="plain",
        metavar="NAME|FILE",
        help="plain, llava_v1, chatml, llama3, or a file (default: plain)",
    )
    talk.add_argument("--placeholder", default="<image>", help="what stands for a picture in a turn (default: %(default)s)")

    mixed = kind("interleaved", "texts and pictures in turn: OBELICS .parquet or .jsonl, MMC4 .jsonl")
    mixed.add_argument(
        "--beyond", choices=("drop", "cut", "reject"), default="drop",
        help="of a document with more than --max-images: drop the pictures, cut it there, reject it (default: drop)",
    )  # fmt: skip
    mixed.add_argument(
        "--missing",
        choices=("drop", "reject"),
        default="drop",
        help="of a document whose picture is not there (default: drop)",
    )
    mixed.add_argument("--min-similarity", type=float, metavar="X", help="leave out pictures of MMC4 that match less")
    mixed.add_argument("--text-separator", metavar="TEXT", help="between texts (default: blank line, or space for MMC4)")
    for made in (talk, mixed):
        made.add_argument("--images", nargs="+", default=[], metavar="DIR|TAR", help="folder or tars that hold the pictures")
        made.add_argument(
            "--naming",
            choices=("path", "file_name", "url_sha256", "url_sha1", "url_md5"),
            default="path",
            help="how a picture there is named: by the record's path, its last part, or a hash of the URL",
        )
        made.add_argument("--max-images", type=int, metavar="N", help="pictures that a document may have")
    for made in (pictures, talk, mixed):
        _add_pictures(made)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="GLOB", help="files, URLs, patterns in quotes, or @LIST with one a line"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX", help="path without suffix")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="PATH", help="tokenizer.json, its folder, .model or .tiktoken"
    )
    parser.add_argument(
        "--tokenizer-backend", choices=("auto", "gigatoken", "tokenizers"), default="auto",
        help="what encodes: gigatoken where it gives the same ids, or the tokenizer's own library (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--append-eod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end every document with the end-of-document token (default: yes)",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="set aside documents with more text tokens")
    parser.add_argument(
        "--split",
        metavar="NAME=SHARE,...",
        help="several datasets by a hash of each document, such as train=98,valid=1,test=1: OUTPUT_train and so on",
    )
    parser.add_argument(
        "--shard-size", metavar="SIZE", help="begin a new dataset at this size, such as 10GB: OUTPUT_00000 ..."
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn: captions, splits (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="stop at the first record that cannot be used")
    parser.add_argument(
        "--max-lost", type=float, default=0.1, metavar="SHARE",
        help="end with exit code 3 if more than this share of the records cannot be used (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the closing summary as json")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes (default: %(default)s, the cores)",
    )


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures")
    group.add_argument("--decode", action="store_true", help="decode every picture to find damage inside (slow)")
    group.add_argument("--max-pixels", type=int, metavar="N", help="set aside larger ones (default: 179 million)")
    group.add_argument("--min-side", type=int, default=1, metavar="PIXELS", help="leave out smaller ones")
    group.add_argument(
        "--max-aspect", type=float, metavar="RATIO", help="leave out ones with a longer / shorter side above it"
    )
    group.add_argument("--min-caption", type=int, default=0, metavar="CHARS", help="leave out pictures with less text")
    group.add_argument("--max-caption", type=int, metavar="CHARS", help="leave out pictures with more text")
    group.add_argument(
        "--duplicates",
        choices=("keep", "sha256", "dhash"),
        default="keep",
        help="leave out a picture that was there before: the same bytes, or alike to a 64-bit difference hash "
        "(default: keep)",
    )
    group.add_argument("--max-side", type=int, metavar="PIXELS", help="make larger ones anew with this longer side")
    group.add_argument(
        "--image-format", choices=("keep", "jpeg", "webp", "png"), default="keep", help="make others anew (default: keep)"
    )
    group.add_argument("--quality", type=int, metavar="1-100", help="of a JPEG or WebP made anew (default: 90)")
    group.add_argument("--strip-metadata", action="store_true", help="take EXIF, XMP and comments out; pixels stay")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.cli.dataset_argument import dataset_prefix
    from megatron_vlm.data.preprocess import (
        preprocess_conversations,
        preprocess_image_text,
        preprocess_interleaved,
        preprocess_text,
    )
    from megatron_vlm.data.tokenizer import Tokenizer

    _refuse_early(args)
    common: dict[str, Any] = {
        "options": build_options(args),
        "workers": args.workers,
        "show_progress": True,
    }
    gc.set_threshold(100_000)  # a tokenizer is some hundred thousand objects, and records come by the million: all in use
    atexit.register(gc.freeze)  # so the end of the process need not look through them for cycles either
    tokenizer = Tokenizer.load(args.tokenizer, backend=args.tokenizer_backend, at_once=True)
    inputs: Sequence[str] = args.input
    output = dataset_prefix(args.output)
    if args.kind == "text":
        summary = preprocess_text(inputs, output, tokenizer, key=args.key, separator=_unescaped(args.separator), **common)
    elif args.kind == "image-text":
        from megatron_vlm.data.captions import CaptionChoice

        summary = preprocess_image_text(
            inputs,
            output,
            tokenizer,
            captions=_captions(args),
            caption_choice=CaptionChoice(args.caption_choice),
            image_key=args.image_key,
            image_folder=args.image_folder,
            seed=args.seed,
            **common,
        )
    else:
        reader: dict[str, Any] = {"naming": args.naming, "max_pictures": args.max_images}
        if args.kind == "conversations":
            reader["placeholder"] = args.placeholder
            summary = preprocess_conversations(
                inputs, output, tokenizer, template=args.template, images=args.images, reader=reader, **common
            )
        else:
            reader |= {"beyond": args.beyond, "missing": args.missing, "min_similarity": args.min_similarity}
            reader["separator"] = _unescaped(args.text_separator)
            summary = preprocess_interleaved(inputs, output, tokenizer, images=args.images, reader=reader, **common)
    print(summary.describe())
    if args.summary is not None:
        import json

        from megatron_vlm.data.atomic_file import write_text

        write_text(args.summary, json.dumps(summary.as_json(), indent=2) + "\n")
    if summary.lost_share > args.max_lost:
        print(
            f"megatron-vlm preprocess: {summary.lost_share:.1%} of the records could not be used, more than --max-lost "
            f"{args.max_lost:.1%}; what was written is sound",
            file=sys.stderr,
        )
        return TOO_MANY_LOST
    return 0


def _refuse_early(args: argparse.Namespace) -> None:
    """Before the work what would be found after it. Raises ConfigError for --max-lost and --summary that cannot be."""
    from megatron_vlm.cli.output_file import refuse_unwritable
    from megatron_vlm.errors import ConfigError

    if not 0 <= args.max_lost <= 1:
        raise ConfigError(f"--max-lost is {args.max_lost}: give a share of the records, from 0 to 1, such as 0.1")
    refuse_unwritable("--summary", args.summary)


def build_options(args: argparse.Namespace) -> BuildOptions:
    """Of the arguments that all kinds have, and those on pictures where there are any."""
    from megatron_vlm.data.building.options import BuildOptions, Duplicates, Split
    from megatron_vlm.data.encoded_pictures.filters import CaptionFilter, PictureFilter
    from megatron_vlm.data.encoded_pictures.reencode import Reencode
    from megatron_vlm.errors import ConfigError

    given: dict[str, Any] = {
        "append_eod": args.append_eod,
        "max_tokens": args.max_tokens,
        "split": Split.parse(args.split, args.seed) if args.split else None,
        "shard_bytes": parse_size(args.shard_size) if args.shard_size else None,
        "strict": args.strict,
    }
    if args.kind != "text":
        given |= {
            "thorough": args.decode,
            "pictures": PictureFilter(args.min_side, args.max_aspect),
            "captions": CaptionFilter(args.min_caption, args.max_caption),
            "duplicates": Duplicates(args.duplicates),
        }
        if args.max_pixels is not None:
            given["max_pixels"] = args.max_pixels
        if args.quality is not None and args.max_side is None and args.image_format == "keep":
            raise ConfigError("--quality is of pictures that are made anew: give --max-side or --image-format too")
        if args.max_side is not None or args.image_format != "keep" or args.strip_metadata:
            given["reencode"] = Reencode(
                max_side=args.max_side,
                format=args.image_format,
                quality=90 if args.quality is None else args.quality,
                strip=args.strip_metadata,
            )
    return BuildOptions(**given)


def parse_size(text: str) -> int:
    """Bytes of "10GB", "512MiB" or "1000000". Raises ConfigError for anything else."""
    import re

    from megatron_vlm.errors import ConfigError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if found is None or not float(found[1]):
        raise ConfigError(f"{text!r} is no size; write 10GB, 512MiB or a number of bytes")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))


def _captions(args: argparse.Namespace) -> str | dict[str, float] | None:
    from megatron_vlm.errors import ConfigError

    if args.caption_weights is None:
        key: str | None = args.caption_key
        return key
    if args.caption_key is not None:
        raise ConfigError("--caption-key names one field and --caption-weights several: give one of the two")
    weights: dict[str, float] = {}
    for entry in args.caption_weights.split(","):
        name, _, weight = entry.rpartition("=")
        try:
            weights[name.strip()] = float(weight)
        except ValueError:
            raise ConfigError(f"--caption-weights: {entry!r} is not FIELD=WEIGHT, such as txt=0.5") from None
    return weights


def _unescaped(text: str | None) -> str | None:
    r"""A shell passes "\n" as two characters; what is meant is a line's end."""
    return text.replace("\\n", "\n").replace("\\t", "\t") if text is not None else None
