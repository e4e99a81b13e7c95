#!/usr/bin/env python3
"""Turn WebDataset tars of captioned pictures into Megatron's multimodal indexed format, with Megatron-like
flags.

Writes OUTPUT_PREFIX.bin and .idx. `megatron-vlm preprocess image-text` does the same work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from megatron_vlm.data.building.options import BuildOptions
from megatron_vlm.data.captions import CaptionChoice
from megatron_vlm.data.preprocess import preprocess_image_text
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help=".tar, .parquet, .jsonl files or patterns in quotes")
    parser.add_argument("--output-prefix", required=True, help="path without suffix")
    parser.add_argument("--tokenizer-type", choices=("HuggingFaceTokenizer",), default="HuggingFaceTokenizer")
    parser.add_argument("--tokenizer-model", required=True, help="tokenizer.json or its folder")
    parser.add_argument("--caption-key", help="field of the .json with the caption (default: the .txt, else 'caption')")
    parser.add_argument("--caption-choice", choices=[choice.value for choice in CaptionChoice], default="first")
    parser.add_argument("--seed", type=int, default=0, help="for --caption-choice sample (default: %(default)s)")
    parser.add_argument("--append-eod", action="store_true", help="end every document with <|endoftext|>")
    parser.add_argument("--strict", action="store_true", help="stop at the first record that cannot be used")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        summary = preprocess_image_text(
            args.input,
            args.output_prefix,
            Tokenizer.load(args.tokenizer_model),
            captions=args.caption_key,
            caption_choice=CaptionChoice(args.caption_choice),
            seed=args.seed,
            options=BuildOptions(append_eod=args.append_eod, strict=args.strict),
            workers=args.workers,
            show_progress=True,
        )
    except UserError as error:
        print(f"preprocess_image_text.py: {error}", file=sys.stderr)
        return 2
    print(summary.describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
