"""What the documentation tells a reader to type exists: verbs, options, configuration fields, scripts, linked files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from megatron_vlm.cli.main import VERBS, build_parser
from megatron_vlm.config.loading import load_config, preset_names

ROOT = Path(__file__).resolve().parents[2]
#: all but the one that is made from the parsers themselves
WRITTEN = (page for page in ROOT.glob("docs/*.md") if page.name != "cli.md")
PAGES = sorted([*WRITTEN, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("benchmarks/*.md")])
SCRIPT = re.compile(r"examples/pretrain_vlm_(79m|1b|7b)\.sh")


def code_lines(text: str) -> list[str]:
    """Lines of fenced blocks, continued ones joined, and code in running text."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return lines + re.findall(r"`([^`\n]+)`", prose)


def arguments_of(line: str) -> list[str] | None:
    """What `megatron-vlm` is given, alone or under torchrun; None for other commands and mere mentions."""
    if line.startswith("megatron-vlm "):
        words = shlex.split(line, comments=True)[1:]
    elif line.startswith("torchrun") and " -m megatron_vlm.cli.main " in line:
        words = shlex.split(line, comments=True)
        words = words[words.index("megatron_vlm.cli.main") + 1 :]
    else:
        return None
    return None if words in ([], ["VERB"]) or (len(words) == 1 and words[0] in VERBS) else words


def script_overrides(line: str) -> list[str] | None:
    """What a pre-training script is given."""
    found = SCRIPT.search(line)
    if found is None or not line.startswith(("torchrun ", "bash ")):
        return None
    words = shlex.split(line, comments=True)
    place = next(i for i, word in enumerate(words) if SCRIPT.search(word))
    return words[place + 1 :]


LINES = [(page, line) for page in PAGES for line in code_lines(page.read_text(encoding="utf-8"))]
COMMANDS = [(page, line) for page, line in LINES if arguments_of(line)]
SCRIPTS = [(page, line) for page, line in LINES if script_overrides(line) is not None]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page.name}: {line[:70]}" for page, line in COMMANDS])
def test_commands_parse(page: Path, line: str) -> None:
    words = arguments_of(line)
    assert words
    verb = next((word for word in words if not word.startswith("-")), None)
    try:
        args, rest = build_parser(verb).parse_known_args(words)
    except SystemExit as end:
        if end.code:  # --help and --version end well
            pytest.fail("no such command")
        return
    assert not rest or args.takes_overrides, f"options that do not exist: {rest}"
    # a preset, so that there are stages which `--curriculum.stages.0.until` can address
    load_config(preset=getattr(args, "preset", None) or "tiny", overrides=rest)


@pytest.mark.parametrize(("page", "line"), SCRIPTS, ids=[f"{page.name}: {line[:70]}" for page, line in SCRIPTS])
def test_overrides_of_the_scripts_are_fields(page: Path, line: str) -> None:
    words = script_overrides(line)
    assert words is not None
    overrides = [word for word in words if word not in ("--smoke", "--help", "...")]
    if "--resume" in overrides:
        at = overrides.index("--resume")
        overrides[at : at + 2] = ["--checkpoint.resume", overrides[at + 1]]
    load_config(preset="vlm_1b", overrides=overrides)


def test_there_is_something_to_check() -> None:
    verbs = {words[0] for _, line in COMMANDS if (words := arguments_of(line))}
    assert verbs >= {"preprocess", "train-tokenizer", "inspect", "config", "train", "evaluate"}
    assert len(SCRIPTS) >= 2


@pytest.mark.parametrize("command", ["megatron-vlm evaluate", "torchrun -m megatron_vlm.cli.main train", "make demo"])
def test_what_is_no_command_line_is_left_alone(command: str) -> None:
    assert arguments_of(command) is None


def test_presets_named_exist() -> None:
    for page, line in LINES:
        for name in re.findall(r"--preset[ =](\w+)", line):
            assert name in preset_names(), (page.name, line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        if anchor and linked.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_this_repository_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`((?:docs|tests|megatron_vlm|benchmarks|examples|csrc|tools)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name
