"""Write docs/cli.md from the parsers of `megatron_vlm.cli`.

  python docs/generate_cli.py            write the file beside this one
  python docs/generate_cli.py --check    exit with 1 if the file is not what would be written

Tables and not argparse's own help text, which differs from one Python to the next.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from megatron_vlm.cli.main import VERBS, build_parser

TARGET = Path(__file__).with_name("cli.md")

HEAD = """\
# Every command

<!-- written by docs/generate_cli.py from the parsers; edit the help texts there, then run it again -->

`megatron-vlm VERB --help` says the same. Verbs that take a configuration accept every field of it as an option besides
(`--section.field VALUE`, [configuration.md](configuration.md)). Exit codes: 0 done, 1 the run failed, 2 bad arguments or
input, 130 interrupted; others are named below or in [parallelism.md](parallelism.md#signals-and-exit-codes).

"""


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb, with its arguments."""
    for action in build_parser(verb)._actions:
        if isinstance(action, argparse._SubParsersAction):
            found: argparse.ArgumentParser = action.choices[verb]
            return found
    raise AssertionError("the command has no verbs")


def described(parser: argparse.ArgumentParser, heading: str, level: int) -> Iterator[str]:
    """Heading, description, options and sub-commands of a parser, as Markdown."""
    yield f"{'#' * level} {heading}\n"
    if parser.description:
        yield from _prose(parser.description)
    rows = [row for action in parser._actions for row in _row(parser, action)]
    if rows:
        yield "| argument | |\n|---|---|"
        yield from rows
        yield ""
    if parser.epilog:
        yield from _prose(parser.epilog)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from described(child, f"{heading} {name}", level + 1)


def _prose(text: str) -> Iterator[str]:
    """Paragraphs as they are, indented ones as blocks of code."""
    for paragraph in textwrap.dedent(text % {"prog": "megatron-vlm"} if "%(prog)" in text else text).strip().split("\n\n"):
        lines = paragraph.splitlines()
        code: list[str] = []
        for line in [*lines, ""]:
            if line.startswith("  "):
                code.append(line[2:])
                continue
            if code:
                yield "\n".join(["\n```", *code, "```\n"])
                code = []
            if line:
                yield line
        yield ""


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
    if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)) or action.help == argparse.SUPPRESS:
        return
    told = parser._get_formatter()._expand_help(action) if action.help else ""
    told = re.sub(r"default: \d+, the cores", "default: the cores", told)  # of this machine
    names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    value = ""
    if action.option_strings and action.nargs != 0:
        shown = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper())
        value = " " + (" ".join(shown) if isinstance(shown, tuple) else str(shown))
        value += " ..." if action.nargs in ("+", "*") else ""
    elif action.choices:
        told = f"{told} ({', '.join(map(str, action.choices))})".strip()
    needed = " (required)" if action.option_strings and action.required else ""
    yield f"| `{_cell(names + value)}` | {_cell(' '.join(told.split()))}{needed} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")


def page() -> str:
    parts = [HEAD, "| verb | |\n|---|---|"]
    parts += [f"| [`{verb}`](#megatron-vlm-{verb}) | {summary} |" for verb, (_, summary) in VERBS.items()]
    parts.append("")
    for verb in VERBS:
        parts += described(parser_of(verb), f"megatron-vlm {verb}", 2)
    return "\n".join(parts).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if the file is not current")
    if not parser.parse_args().check:
        TARGET.write_text(page(), encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") != page():
        print(f"{TARGET}: not current; run python docs/generate_cli.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
