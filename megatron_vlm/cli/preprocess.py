"""Turn captioned pictures (WebDataset tars) or text (jsonl) into Megatron's indexed format.

  megatron-vlm preprocess text       --input 'prose/*.jsonl.zst' --output data/prose  --tokenizer tokenizer/
  megatron-vlm preprocess image-text --input 'images/train-*.tar' --output data/images --tokenizer tokenizer/

Writes OUTPUT.bin and OUTPUT.idx (megatron-core's IndexedDataset opens them), OUTPUT.json (what is in them and
where it came from) and, if any record could not be used, OUTPUT.quarantine.jsonl (which and why). The same
inputs give the same bytes, whatever --workers is. Nothing has its final name before everything is written.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="{text,image-text}", required=True)

    text = kinds.add_parser("text", help=".jsonl, .jsonl.gz and .jsonl.zst: a document a line")
    _add_common(text)
    text.add_argument("--key", default="text", help="field that holds the text (default: %(default)s)")

    pictures = kinds.add_parser("image-text", help=".tar files as img2dataset writes them: a captioned picture a key")
    _add_common(pictures)
    pictures.add_argument(
        "--caption-key",
        metavar="FIELD",
        help="field of the .json with the caption (default: the .txt, else 'caption')",
    )
    pictures.add_argument(
        "--caption-choice",
        choices=("first", "sample", "all"),
        default="first",
        help="of a list of captions, take the first, one drawn by --seed and key, or a document for each "
        "(default: %(default)s)",
    )
    pictures.add_argument("--seed", type=int, default=0, help="for --caption-choice sample (default: %(default)s)")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", nargs="+", required=True, metavar="GLOB", help="files, or patterns in quotes")
    parser.add_argument("--output", type=Path, required=True, metavar="PREFIX", help="path without suffix")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="PATH", help="tokenizer.json or its folder")
    parser.add_argument(
        "--append-eod",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="end every document with <|endoftext|> (default: yes)",
    )
    parser.add_argument("--strict", action="store_true", help="stop at the first record that cannot be used")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="threads (default: %(default)s, the cores)",
    )


def run(args: argparse.Namespace) -> int:
    # The tokenizer's own thread pool reads this once, when it first encodes.
    os.environ.setdefault("RAYON_NUM_THREADS", str(max(args.workers, 1)))

    from megatron_vlm.data.captions import CaptionChoice
    from megatron_vlm.data.preprocess import preprocess_image_text, preprocess_text
    from megatron_vlm.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer)
    show_progress = sys.stderr.isatty()
    if args.kind == "text":
        summary = preprocess_text(
            args.input,
            args.output,
            tokenizer,
            key=args.key,
            append_eod=args.append_eod,
            strict=args.strict,
            workers=args.workers,
            show_progress=show_progress,
        )
    else:
        summary = preprocess_image_text(
            args.input,
            args.output,
            tokenizer,
            caption_key=args.caption_key,
            caption_choice=CaptionChoice(args.caption_choice),
            seed=args.seed,
            append_eod=args.append_eod,
            strict=args.strict,
            workers=args.workers,
            show_progress=show_progress,
        )
    print(summary.describe())
    return 0
