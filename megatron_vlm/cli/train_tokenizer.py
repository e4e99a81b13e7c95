"""Train a byte-level BPE tokenizer on captions and text.

  megatron-vlm train-tokenizer --image-text 'images/train-*.tar' --text 'prose/*.jsonl.zst' --vocab-size 4096
  --output tokenizer/

Writes OUTPUT/tokenizer.json, which Hugging Face tokenizers open. <|endoftext|>, <image> and <|pad|> are ids
0, 1 and 2. Records that cannot be read are passed over and counted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", nargs="+", default=[], metavar="GLOB", help=".jsonl, .jsonl.gz or .jsonl.zst files")
    parser.add_argument("--image-text", nargs="+", default=[], metavar="GLOB", help="WebDataset tars: their captions")
    parser.add_argument("--key", default="text", help="field that holds the text (default: %(default)s)")
    parser.add_argument(
        "--caption-key",
        metavar="FIELD",
        help="field of the .json with the caption (default: the .txt, else 'caption')",
    )
    parser.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="tokens in all (default: %(default)s)")
    parser.add_argument(
        "--min-frequency",
        type=int,
        default=2,
        metavar="N",
        help="rarer pairs are not merged (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for tokenizer.json")


def run(args: argparse.Namespace) -> int:
    from megatron_vlm.data.captions import CaptionChoice
    from megatron_vlm.data.quarantine import Rejection
    from megatron_vlm.data.records import Text
    from megatron_vlm.data.sources.choose import image_text_source, text_source
    from megatron_vlm.data.sources.opening import expand_inputs
    from megatron_vlm.data.sources.reading import read_file
    from megatron_vlm.data.tokenizer_training import train_bpe
    from megatron_vlm.errors import ConfigError

    if not args.text and not args.image_text:
        raise ConfigError("there is nothing to train on: give --text, --image-text or both")
    files = [(text_source(file.url, args.key), file) for file in expand_inputs(args.text)]
    for file in expand_inputs(args.image_text):
        files.append((image_text_source(file.url, captions=args.caption_key, choice=CaptionChoice.ALL), file))
    texts = rejected = 0

    def every_text() -> Iterator[str]:
        nonlocal texts, rejected
        for source, file in files:
            for record in read_file(source, file):
                if isinstance(record, Rejection):
                    rejected += 1
                    continue
                for document in record.documents:
                    for part in document:
                        if isinstance(part, Text):
                            texts += 1
                            yield part.text

    tokenizer = train_bpe(every_text(), args.vocab_size, min_frequency=args.min_frequency, show_progress=sys.stderr.isatty())
    path = tokenizer.save(args.output)
    print(f"Wrote {path}: {tokenizer.vocab_size:,} tokens, learnt from {texts:,} texts; {rejected:,} records unusable.")
    if tokenizer.vocab_size < args.vocab_size:
        print(f"The texts had no more pairs to merge, so it is smaller than the {args.vocab_size:,} asked for.")
    return 0
