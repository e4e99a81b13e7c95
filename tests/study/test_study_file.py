"""What a study file may say, and how it is told what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_vlm.errors import ConfigError
from megatron_vlm.study.points import study_points
from megatron_vlm.study.study_file import axis_values, name_of
from tests.study.cases import STUDY, study


def test_known_axes_and_maps(tmp_path: Path) -> None:
    axes = {"visual_share": [0.1, 0.25], "encoder": {"frozen": {"images.freeze": ["vision"]}, "trained": None}}
    values = axis_values(study(tmp_path, axes=axes, grids={}))
    assert values["visual_share"]["0.25"] == {"images.sources.captions": 0.25}
    assert values["encoder"] == {"frozen": {"images.freeze": ["vision"]}, "trained": {}}


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1.0, "1"),
        (0.2, "0.2"),
        ("a", "a"),
        (True, "True"),
        (1e-5, "1e-05"),
        (20240101, "20240101"),
        (20240101.0, "20240101"),
        (0.12345678, "0.12345678"),
    ],
)
def test_names_of_values(value: Any, name: str) -> None:
    assert name_of(value) == name


def test_seeds_of_many_digits_are_runs_of_their_own(tmp_path: Path) -> None:
    seeds = [20240101, 20240102]
    changed = study(tmp_path, axes={"seed": seeds}, grids={"when": {"seed": "all"}})
    assert [point.config.schedule.seed for point in study_points(changed)] == seeds


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axis": {}}, "axis: unknown key; did you mean 'axes'"),
        ({"axes": {"introductoin": [0]}}, "a list of values needs an axis that is known"),
        ({"axes": {"introduction": []}}, "axes.introduction: has no values"),
        ({"axes": {"seed": [1, 2, 1.0]}, "grids": {}}, "axes.seed: 1 and 1.0 are both named 1; give each value once"),
        ({"axes": {"x": {"1": {}, 1: {}}}, "grids": {}}, "axes.x: '1' and 1 are both named 1"),
        ({"axes": {"introduction": 3}}, "expected a list of values or a map"),
        ({"axes": {"x": {"a": {"image.freeze": []}}}, "grids": {}}, "did you mean 'images'"),
        ({"grids": {"g": {"sed": "all"}}}, "no such axis; did you mean 'seed'"),
        ({"grids": {"g": {"seed": [3]}}}, "3 is none of its values (1, 2)"),
        ({"exclude": [{"introduction": 0.3}]}, "exclude[0].introduction: 0.3 is none of its values"),
        ({"length": {"image_steps": 3}}, "length.text_steps"),
        ({"finetune": {"epochs": 2}}, "finetune.source"),
    ],
)
def test_refused_with_the_key_and_the_remedy(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        study(tmp_path, **changes)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": {**STUDY["base"], "schedule": {"train_steps": 9}}}, "say `length` instead"),
        ({"base": {**STUDY["base"], "curriculum": {}}}, "the study makes it from `text` and `images`"),
        ({"images": {**STUDY["images"], "lr_policy": "warm"}}, "introduction 0.8, seed 1: curriculum.stages[1].lr_policy"),
        ({"exclude": [{"seed": [1, 2]}]}, "no point is left"),
        ({"axes": {"introduction": [1.5]}, "grids": {}}, "1.5 is no share of the text trunk"),
        ({"axes": {"visual_share": [1.5]}, "grids": {}}, "visual_share 1.5 cannot be run"),
        (
            {"length": {"text_steps": 100, "image_steps": 0}, "axes": {"introduction": [0]}, "grids": {}},
            "introduction 0: length.image_steps: 0 after introduction 0 leaves no run",
        ),
        ({"length": {"text_steps": 100, "image_steps": -3}}, "it would end at step 77, and images enter at step 80"),
    ],
)
def test_points_that_cannot_be_are_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        study_points(study(tmp_path, **changes))
    assert words in str(refusal.value)


def test_points_are_the_products_without_what_is_excluded(tmp_path: Path) -> None:
    changes = {
        "axes": {**STUDY["axes"], "visual_share": [0.2, 0.4]},
        "grids": {"when": {"introduction": "all"}, "share": {"visual_share": "all", "introduction": [0.8]}},
        "exclude": [{"introduction": 0, "seed": 1}],
    }
    points = study_points(study(tmp_path, **changes))
    assert [(p.value("introduction"), p.value("visual_share"), p.grids) for p in points] == [
        ("0.8", "0.2", ("when", "share")),
        ("0.2", "0.2", ("when",)),
        ("1", "0.2", ("when",)),
        ("0.8", "0.4", ("share",)),
    ]


def test_stages_lengths_and_shares(tmp_path: Path) -> None:
    changes = {"axes": {**STUDY["axes"], "visual_share": [0.4]}}
    points = {p.value("introduction"): p for p in study_points(study(tmp_path, **changes)) if p.value("seed") == "2"}
    assert {name: (p.introduction, p.config.total_steps) for name, p in points.items()} == {
        "0.8": (80, 110),
        "0": (0, 30),
        "0.2": (20, 50),
        "1": (100, 130),
    }
    config = points["0.2"].config
    assert [(s.name, s.until_steps) for s in config.curriculum.stages] == [("text", 20), ("images", None)]
    assert config.curriculum.stages[1].sources == pytest.approx({"text": 0.6, "captions": 0.4})
    assert [s.name for s in points["0"].config.curriculum.stages] == ["images"]
    assert config.schedule.seed == 2
    assert points["0.2"].trunk.total_steps == 100

    inside = {p.value("introduction"): p for p in study_points(study(tmp_path, length={"text_steps": 100}))}
    assert {p.config.total_steps for p in inside.values()} == {100}
    assert [s.name for s in inside["1"].config.curriculum.stages] == ["text"]
