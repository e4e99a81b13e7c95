"""The command itself: fast help without heavy imports, exit codes, and one verb imported at a time."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import re
import subprocess
import sys
import time
import types

import pytest

from megatron_vlm import __version__
from megatron_vlm.cli import main as cli
from megatron_vlm.errors import DataError

COMMAND = [sys.executable, "-m", "megatron_vlm.cli.main"]


def imported_by(*arguments: str) -> set[str]:
    """Top-level names of every module that the command imports in a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    names = re.findall(r"^import time:.*\|\s*([\w.]+)$", result.stderr, flags=re.MULTILINE)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_imports_nothing_heavy(option):
    imported = imported_by(option)
    assert "argparse" in imported, "the import log was not understood"
    assert imported.isdisjoint({"torch", "numpy", "megatron", "PIL", "tokenizers", "matplotlib", "yaml"})


def test_help_answers_at_once():
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
        best = min(best, time.perf_counter() - start)
    assert best < 0.3


def test_help_names_every_verb(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for verb, (_, summary) in cli.VERBS.items():
        assert verb in printed
        assert summary.split()[0] in printed


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"megatron-vlm {__version__}\n"


def test_the_installed_command_is_this_one():
    (entry,) = importlib.metadata.entry_points(group="console_scripts", name="megatron-vlm")
    assert entry.load() is cli.main
    assert importlib.metadata.version("megatron-vlm") == __version__


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["tarin"], "invalid choice: 'tarin'"), ([], "required: VERB"), (["--frob"], "VERB")],
)
def test_bad_arguments_exit_2(capsys, argv, message):
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def greet(monkeypatch):
    """A verb `greet NAME` whose `run` the test may replace."""
    module = types.ModuleType("megatron_vlm.cli.greet", doc="Greet someone.")
    module.add_arguments = lambda parser: parser.add_argument("name")  # type: ignore[attr-defined]
    module.run = lambda args: 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "megatron_vlm.cli.greet", module)
    monkeypatch.setitem(cli.VERBS, "greet", ("greet", "greet someone"))
    return module


def test_a_verb_gets_its_arguments_and_gives_the_exit_code(greet):
    seen = []
    greet.run = lambda args: seen.append(args.name) or 7
    assert cli.main(["greet", "Ada"]) == 7
    assert seen == ["Ada"]


def test_a_user_error_is_one_line_and_exit_2(greet, capsys):
    def run(args):
        raise DataError(f"{args.name}: record 3 is empty; remove it")

    greet.run = run
    assert cli.main(["greet", "a.jsonl"]) == 2
    assert capsys.readouterr().err == "megatron-vlm greet: a.jsonl: record 3 is empty; remove it\n"


def test_a_defect_keeps_its_traceback(greet):
    def run(args):
        raise KeyError("internal")

    greet.run = run
    with pytest.raises(KeyError, match="internal"):
        cli.main(["greet", "Ada"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/no/x.json"),
            "/no/x.json: No such file or directory",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/etc/x"), "/etc/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; make room and run it again"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_line_and_exit_2(greet, capsys, error, said):
    def run(args):
        raise error

    greet.run = run
    assert cli.main(["greet", "Ada"]) == 2
    assert capsys.readouterr().err == f"megatron-vlm greet: {said}\n"


def test_a_device_that_fails_keeps_its_traceback(greet):
    def run(args):
        raise OSError(errno.EIO, "Input/output error", "/data/x")

    greet.run = run
    with pytest.raises(OSError, match="Input/output"):
        cli.main(["greet", "Ada"])


def test_an_interrupt_exits_130(greet, capsys):
    def run(args):
        raise KeyboardInterrupt

    greet.run = run
    assert cli.main(["greet", "Ada"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_is_no_error():
    process = subprocess.Popen(
        [*COMMAND, "config", "--preset", "vlm_1b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()  # as head does after its lines
    said = process.stderr.read()
    assert (process.wait(), said) == (141, "")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_cannot_be_printed_is_escaped(encoding):
    code = """if True:
        import types
        from megatron_vlm.cli import main as cli
        told = types.SimpleNamespace(__doc__="", add_arguments=lambda parser: None)
        told.run = lambda args: print("caf\\udce9") or 0
        cli.importlib = types.SimpleNamespace(import_module=lambda name: told)
        print(cli.main(["inspect"]))
    """
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert result.stdout == b"caf\\udce9\n0\n"
