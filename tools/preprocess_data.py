#!/usr/bin/env python3
"""Turn .jsonl text into Megatron's indexed format, with the flags of Megatron-LM's script of this name.

Each key gets its dataset, OUTPUT_PREFIX_KEY_document.bin and .idx. `megatron-vlm preprocess text` does the
same work with more to choose from; this script is for pipelines that call Megatron's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from megatron_vlm.data.building.options import BuildOptions
from megatron_vlm.data.preprocess import preprocess_text
from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.errors import UserError

#: what Megatron calls them; which it is, is told by the file
TOKENIZERS = (
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "GPTSentencePieceTokenizer",
    "Llama2Tokenizer",
    "TikTokenizer",
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="text files or patterns in quotes")
    parser.add_argument("--output-prefix", required=True, help="path without suffix")
    parser.add_argument("--json-keys", nargs="+", default=["text"], help="fields that hold text (default: text)")
    parser.add_argument("--tokenizer-type", choices=TOKENIZERS, default="HuggingFaceTokenizer")
    parser.add_argument("--tokenizer-model", required=True, help="tokenizer.json, its folder, a .model or a .tiktoken")
    parser.add_argument("--append-eod", action="store_true", help="end every document with <|endoftext|>")
    parser.add_argument("--strict", action="store_true", help="stop at the first record that cannot be used")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        tokenizer = Tokenizer.load(args.tokenizer_model)
        for key in args.json_keys:
            summary = preprocess_text(
                args.input,
                f"{args.output_prefix}_{key}_document",
                tokenizer,
                key=key,
                options=BuildOptions(append_eod=args.append_eod, strict=args.strict),
                workers=args.workers,
                show_progress=True,
            )
            print(summary.describe())
    except UserError as error:
        print(f"preprocess_data.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
