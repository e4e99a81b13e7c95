"""What megatron-core has and this project does not is told with the reason, and with fields that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megatron_vlm.config.loading import load_config
from megatron_vlm.config.not_offered import NOT_OFFERED
from megatron_vlm.errors import ConfigError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"


@pytest.mark.parametrize("name", NOT_OFFERED)
def test_the_reason_and_what_there_is(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^parallel\.{name}: not offered: ") as refusal:
        load_config(preset="tiny", overrides=[f"--parallel.{name}", "2"])
    config = load_config(preset="tiny")
    fields = re.findall(r"\b(parallel|performance|precision)\.(\w+)", str(refusal.value))[1:]
    assert fields
    for section, field in fields:
        assert hasattr(getattr(config, section), field)


def test_a_word_that_nobody_knows_is_told_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown key; did you mean 'sequence_parallel'"):
        load_config(preset="tiny", overrides=["--parallel.sequence_paralel", "true"])


def test_the_page_names_what_is_not_offered() -> None:
    text = PAGE.read_text(encoding="utf-8").lower()
    for subject in ("cuda graphs of whole layers", "kept in fp8"):
        assert f"**{subject}.**" in text or f"**weights {subject}.**" in text
