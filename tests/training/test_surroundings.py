"""What is found here, and that what is missing is a problem."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata

import megatron.core
import pytest
import torch

from megatron_vlm.cli.main import main
from megatron_vlm.data.decoding import decoder
from megatron_vlm.training import surroundings


def _found() -> dict[str, surroundings.Finding]:
    return {finding.part: finding for finding in surroundings.survey()}


def test_what_is_here() -> None:
    found = _found()
    assert found["torch"].found.startswith(torch.__version__)
    assert found["megatron-core"].found == megatron.core.__version__
    assert found["native operators"].found == "built"
    assert "pillow" in found["decoders"].found
    assert not any(finding.problem for finding in found.values())
    assert ("GPU 0" in found) == torch.cuda.is_available()


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "megatron-core" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {finding["part"] for finding in findings} == set(_found())


def _without(name: str) -> Callable[[str], str]:
    real = metadata.version

    def version(asked: str) -> str:
        if asked == name:
            raise metadata.PackageNotFoundError(asked)
        return real(asked)

    return version


def test_without_megatron_core_nothing_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(surroundings.metadata, "version", _without("megatron-core"))
    assert main(["doctor"]) == 1
    assert "PROBLEM: megatron-core: pip install 'megatron-core" in capsys.readouterr().out


def test_a_release_that_is_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(surroundings.metadata, "version", lambda name: "0.5.0" if name == "megatron-core" else real(name))
    assert "this package needs" in _found()["megatron-core"].problem


def test_without_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "LIBRARIES", dict.fromkeys(decoder.LIBRARIES, ("no_such_module", "x")))
    assert "pip install simplejpeg pillow" in _found()["decoders"].problem
