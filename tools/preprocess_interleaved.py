#!/usr/bin/env python3
"""Turn interleaved documents (OBELICS, MMC4) or conversations (LLaVA) into Megatron's multimodal indexed format.

Writes OUTPUT_PREFIX.bin and .idx. `megatron-vlm preprocess interleaved` and `preprocess conversations` do the same work with
more to choose from; this script is for pipelines that call Megatron-like ones.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from megatron_vlm.data.building.options import BuildOptions
from megatron_vlm.data.preprocess import preprocess_conversations, preprocess_interleaved
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help=".parquet, .jsonl or .json files or patterns in quotes")
    parser.add_argument("--images", nargs="+", default=[], help="the folder or the tars that hold the pictures")
    parser.add_argument("--output-prefix", required=True, help="path without suffix")
    parser.add_argument("--tokenizer-model", required=True, help="tokenizer.json, its folder, a .model or a .tiktoken")
    parser.add_argument("--chat-template", help="the input is conversations: plain, llava_v1, chatml, llama3, or a file")
    parser.add_argument("--max-images", type=int, help="pictures that a document may have")
    parser.add_argument("--append-eod", action="store_true", help="end every document with the end-of-document token")
    parser.add_argument("--strict", action="store_true", help="stop at the first record that cannot be used")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        tokenizer = Tokenizer.load(args.tokenizer_model)
        options = BuildOptions(append_eod=args.append_eod, strict=args.strict)
        reader = {"max_pictures": args.max_images}
        if args.chat_template is None:
            summary = preprocess_interleaved(
                args.input,
                args.output_prefix,
                tokenizer,
                images=args.images,
                reader=reader,
                options=options,
                workers=args.workers,
                show_progress=True,
            )
        else:
            summary = preprocess_conversations(
                args.input,
                args.output_prefix,
                tokenizer,
                template=args.chat_template,
                images=args.images,
                reader=reader,
                options=options,
                workers=args.workers,
                show_progress=True,
            )
    except UserError as error:
        print(f"preprocess_interleaved.py: {error}", file=sys.stderr)
        return 2
    print(summary.describe())
    return 0


if __name__ == "__main__":
    sys.exit(main())
