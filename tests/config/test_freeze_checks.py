"""Entries of `freeze` that name nothing, and stages that would train nothing, are refused with what may have been meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_vlm.config.checks import plan_problems, problems
from megatron_vlm.config.loading import load_config
from megatron_vlm.config.run import RunConfig

#: names of all parameters under Transformer Engine's layers; under the host's they begin alike
NAMES = Path(__file__).parents[1] / "models" / "parameter_table_te_2.20.2.json"
BASE = ["--data.tokenizer", "t", "--data.sources", "{text: a, captions: b}", "--schedule.train_steps", "100"]
WHERE = "curriculum.stages.1 (images).freeze: "


def run(freeze: str, *overrides: str) -> RunConfig:
    return load_config(preset="tiny", overrides=[*BASE, "--curriculum.stages.1.freeze", freeze, *overrides])


@pytest.mark.parametrize(
    ("freeze", "reason", "mended"),
    [
        ("[visoin]", "'visoin' is no module (language, vision, projector)", "did you mean 'vision'?"),
        ("[vision, langauge]", "'langauge' is no module", "did you mean 'language'?"),
        ("[vison.decoder.]", "no parameter's name begins so", "did you mean 'vision.decoder."),
        ("[language_model.decoder.layer.0.]", "name begins so", "did you mean 'language_model.decoder.layers.0.'?"),
        ("[language_model.embeddings]", "name begins so", "did you mean 'language_model.embedding.'?"),
        ("[qqq]", "name begins so", "such as 'language_model.decoder.layers.0.'"),
        (
            "[language_model.decoder.layers.4.]",
            "num_layers 4 gives layers 0 to 3",
            "language_model.decoder.layers.3.",
        ),
        (
            "[language_model.decoder.layers.12]",
            "num_layers 4 gives layers 0 to 3",
            "language_model.decoder.layers.3",
        ),
        ("[vision.decoder.layers.3.mlp.]", "num_layers 3 gives layers 0 to 2", "vision.decoder.layers.2.mlp."),
        ("[vision.second.class_token]", "no parameter's name begins so", "did you mean 'vision.class_token'?"),
    ],
)
def test_an_entry_that_names_nothing_is_refused(freeze: str, reason: str, mended: str) -> None:
    for found in (problems(run(freeze), 1), plan_problems(run(freeze))):
        (line,) = found
        assert line.startswith(WHERE)
        assert reason in line
        assert mended in line
    offered = mended.split("'")[1] if "'" in mended else mended
    assert problems(run(f"[{offered}]"), 1) == []


def test_layers_that_are_not_taken_are_none() -> None:
    (line,) = problems(run("[vision.decoder.layers.2.]", "--model.vision.skip_last_layers", "1"), 1)
    assert "model.vision.num_layers - skip_last_layers 2 gives layers 0 to 1; nearest: vision.decoder.layers.1." in line


@pytest.mark.parametrize(
    "freeze",
    [
        "[]",
        "[vision]",
        "[vision., projector]",
        "[vis]",
        "[language_model.decoder.layers.0.]",
        "[language_model.decoder.layers.3]",
        "[language_model.embedding., vision.decoder.layers.0.mlp.linear_fc1.weight]",
        "[language, vision]",
    ],
)
def test_modules_and_beginnings_of_names_are_taken(freeze: str) -> None:
    assert problems(run(freeze), 1) == []


@pytest.mark.parametrize(
    "freeze", ["[language, vision, projector]", "['']", "[language_model., vis, projector.]", "[language_m, v, p]"]
)
def test_a_stage_that_trains_nothing_is_refused(freeze: str) -> None:
    (line,) = problems(run(freeze), 1)
    assert line.startswith(WHERE)
    assert "this one would train nothing; leave " in line


def test_every_name_of_every_model_is_known() -> None:
    tables = json.loads(NAMES.read_text(encoding="utf-8"))
    names = {name.removeprefix("not in checkpoints: ").replace("*", "0") for table in tables.values() for name in table}
    assert len(names) > 60
    second = "{num_layers: 3, kind: dinov2, patch_size: 16}"
    assert problems(run(f"[{', '.join(sorted(names))}]", "--model.vision_second", second), 1) == []
