"""`megatron-vlm config`: what it prints is a configuration, and what cannot run is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vlm.cli import main as cli
from megatron_vlm.config.loading import load_config, preset_names, to_yaml

DATA = ["--data.tokenizer", "t", "--data.sources", "{text: a, captions: b}", "--schedule.train_steps", "100"]


@pytest.mark.parametrize("preset", preset_names())
def test_what_it_prints_loads_back(preset: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--schedule.lr", "3e-3", "--data.sources={text: a}", "--logging.directory", "'1e5'"]
    assert cli.main(["config", "--preset", preset, *arguments]) == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    expected = load_config(preset=preset, overrides=arguments)
    assert load_config(file=file) == expected
    assert (expected.schedule.lr, expected.logging.directory) == (3e-3, "1e5")
    assert cli.main(["config", "--config", str(file)]) == 0
    assert capsys.readouterr().out == to_yaml(expected), "printing what was printed changes nothing"


def test_every_field_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config"]) == 0
    printed = capsys.readouterr().out
    for field in ("num_query_groups: null", "window_packs: 256", "seed: 1234", "measure: tokens", "keep_last: 0"):
        assert field in printed


def test_check_says_that_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--preset", "tiny", "--check", "2", *DATA]) == 0
    assert capsys.readouterr().out == "fits 2 rank(s)\n"


def test_check_refuses_with_every_reason(capsys: pytest.CaptureFixture[str]) -> None:
    bad = ["--schedule.warmup_steps", "100", "--parallel.tensor_model_parallel_size", "3"]
    assert cli.main(["config", "--preset", "tiny", "--check", "3", *DATA, *bad]) == 2
    output = capsys.readouterr()
    assert output.out == "", "nothing that could be taken for a configuration"
    assert output.err.startswith("megatron-vlm config: this run cannot start:\n")
    assert "schedule.warmup_steps: 100" in output.err
    assert "parallel.tensor_model_parallel_size: 3" in output.err
    assert "Traceback" not in output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "tinny"], "did you mean 'tiny'"),
        (["--config", "gone.yaml"], "gone.yaml: cannot be read"),
        (["--schedule.lrr", "1"], "schedule.lrr: unknown key; did you mean 'lr'"),
        (["--presett", "tiny"], "argument '--presett' is not understood"),
    ],
)
def test_what_cannot_be_read_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", *arguments]) == 2
    assert message in capsys.readouterr().err
