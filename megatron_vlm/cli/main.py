"""Entry point of `megatron-vlm`.

Only the verb that was asked for is imported, so that `megatron-vlm --help` answers without torch.
A verb is a module of this package with `add_arguments(parser)` and `run(args) -> int` (the exit code). One that takes
configuration overrides (`--section.field VALUE`) says `TAKES_OVERRIDES = True` and finds them in `args.overrides`.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from megatron_vlm import __version__
from megatron_vlm.errors import UserError

#: verb -> (module under megatron_vlm.cli, one line for --help), in the order in which a new user meets them
VERBS: dict[str, tuple[str, str]] = {
    "preprocess": ("preprocess", "turn captioned pictures (WebDataset tars) or text (jsonl) into .bin/.idx"),
    "train-tokenizer": ("train_tokenizer", "train a byte-level BPE tokenizer on captions and text"),
    "validate": ("validate", "check datasets by their checksums or record by record, and name what is damaged"),
    "merge": ("merge", "put datasets together into one"),
    "sample": ("sample", "draw documents of a dataset into a smaller one"),
    "inspect": ("inspect", "show what a .bin/.idx dataset or a checkpoint holds"),
    "doctor": ("doctor", "what this machine has for training, and what is missing"),
    "config": ("config", "print a resolved configuration, or explain every field"),
    "curriculum": ("curriculum", "show what a run will train on, stage by stage, and what one has trained on"),
    "plan": ("plan", "does it fit on these GPUs, how long it takes and what it costs; or the fastest layout"),
    "train": ("train", "pre-train a model; images enter where the curriculum says"),
    "study": ("study", "one text trunk, branches where images enter: plan, run, report"),
    "encode": ("encode", "keep what a frozen encoder makes of a dataset's pictures, for training to read"),
    "evaluate": ("evaluate", "held-out loss by modality, tasks, blind control, four-way naming of pictures"),
    "generate": ("generate", "continue prompts, with pictures before them"),
    "convert": ("convert", "weights of other projects in, checkpoints out to transformers"),
}


def build_parser(verb: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="megatron-vlm",
        description="Pre-train vision-language models on megatron-core, with images introduced at any point of the run.",
        epilog="megatron-vlm VERB --help tells what a verb takes.  A first run: make demo.",
    )
    parser.add_argument("--version", action="version", version=f"megatron-vlm {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (module_name, summary) in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=summary,
            description=summary,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name == verb:
            module = importlib.import_module(f"megatron_vlm.cli.{module_name}")
            sub.description = module.__doc__
            module.add_arguments(sub)
            sub.set_defaults(run=module.run, takes_overrides=getattr(module, "TAKES_OVERRIDES", False))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 1 the run failed, 2 bad arguments or input, others are the verb's own."""
    _print_any_name()
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = next((a for a in argv if not a.startswith("-")), None)
    parser = build_parser(verb)
    args, rest = parser.parse_known_args(argv)
    if rest and not args.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides = rest
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"megatron-vlm {args.verb}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the output goes to something like head, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain again at its end
        return 141
    except OSError as error:
        said = _said(error)
        if said is None:
            raise
        print(f"megatron-vlm {args.verb}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"megatron-vlm {args.verb}: interrupted", file=sys.stderr)
        return 130


_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNUSABLE = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EROFS,
    errno.ENAMETOOLONG,
)


def _said(error: OSError) -> str | None:
    """What a user can mend: a path that cannot be used, a disk that is full. None for anything else, such as a device that
    fails: where it happened is in the traceback."""
    if error.errno in _FULL:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}; make room and run it again"
    return f"{error.filename}: {error.strerror}" if error.filename and error.errno in _UNUSABLE else None


def _print_any_name() -> None:
    """Names of files need not be UTF-8, and terminals need not show all of Unicode: what cannot be printed is escaped, as
    Python does on standard error, rather than end a command that has done its work."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
