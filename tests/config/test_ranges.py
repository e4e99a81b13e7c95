"""Every number of a configuration has a range, and one outside of it is refused with a number that is inside."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from megatron_vlm.config.checks import plan_problems, problems
from megatron_vlm.config.curriculum import CurriculumConfig, StageConfig
from megatron_vlm.config.loading import load_config, preset_names
from megatron_vlm.config.model import ModelConfig, VisionConfig
from megatron_vlm.config.ranges import RANGES, range_problems
from megatron_vlm.config.run import RunConfig

#: any whole number will do
FREE = {"schedule.seed"}
#: every section that there is
WHOLE = RunConfig(
    model=ModelConfig(vision_second=VisionConfig()), curriculum=CurriculumConfig((StageConfig("a"), StageConfig("b")))
)


def _numbers(section: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path of each field that holds numbers, with its annotation."""
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{path}{field.name}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            yield from _numbers(value[-1], f"{path}{field.name}.{len(value) - 1}.")
        elif re.search(r"\b(int|float)\b", str(hints[field.name])):
            yield f"{path}{field.name}", hints[field.name]


FIELDS = dict(_numbers(WHOLE))


def _with(section: Any, path: list[str], number: float, annotation: Any) -> Any:
    """A copy of the section with the number at the path; maps and lists get it as an entry."""
    name, *rest = path
    if isinstance(section, tuple):
        return (*section[: int(name)], _with(section[int(name)], rest, number, annotation), *section[int(name) + 1 :])
    if rest:
        return dataclasses.replace(section, **{name: _with(getattr(section, name), rest, number, annotation)})
    origin = typing.get_origin(annotation)
    value = {"x": number} if origin is dict else (0.5, number, 0.5) if origin is tuple else number
    return dataclasses.replace(section, **{name: value})


def _lines(field: str, number: float) -> list[str]:
    return list(range_problems(_with(WHOLE, field.split("."), number, FIELDS[field])))


def _section(field: str) -> type[Any]:
    section: Any = WHOLE
    for part in field.split(".")[:-1]:
        section = section[int(part)] if isinstance(section, tuple) else getattr(section, part)
    return type(section)


def test_the_fields_are_found() -> None:
    assert len(FIELDS) > 100
    assert {"curriculum.stages.1.until", "model.vision_second.pixel_std", "optimizer.lr_mult"} <= set(FIELDS)


def test_every_number_has_a_range_and_every_range_a_number() -> None:
    known = {(_section(field), field.split(".")[-1]) for field in FIELDS if field not in FREE}
    assert known == {(section, name) for section, fields in RANGES.items() for name in fields}


@pytest.mark.parametrize("field", [field for field in FIELDS if field not in FREE])
def test_what_is_outside_is_refused_with_a_number_that_is_inside(field: str) -> None:
    wanted = RANGES[_section(field)][field.split(".")[-1]]
    is_float, wrong = "float" in str(FIELDS[field]), [wanted.least - 1]
    wrong += [wanted.least] if wanted.above else []
    if math.isfinite(wanted.most):
        wrong += [wanted.most + 1, *([wanted.most] if wanted.below else [])]
    if is_float:
        wrong += [math.nan, math.inf, -math.inf]
    for number in wrong:
        (line,) = _lines(field, float(number) if is_float else number)
        place, _, message = line.partition(": ")
        assert re.sub(r" \([ab]\)", "", place).startswith(field)
        assert f"{number:g} must be " in message
        found = re.search(r"such as ([\d.e+-]+)", message) or re.search(r"at least ([\d.]+)", message)
        assert found, message
        assert _lines(field, float(found[1])) == []


def test_the_defaults_and_every_preset_are_inside() -> None:
    assert list(range_problems(WHOLE)) == []
    for name in preset_names():
        assert list(range_problems(load_config(preset=name))) == []


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("logging.log_interval", "0", "logging.log_interval: 0 must be at least 1"),
        ("optimizer.adam_beta2", "1.0", "optimizer.adam_beta2: 1 must be at least 0 and below 1, such as 0.95"),
        ("optimizer.weight_decay", ".nan", "optimizer.weight_decay: nan must be at least 0 and finite"),
        ("optimizer.lr_mult.vision", "-1", "optimizer.lr_mult.vision: -1 must be at least 0 and finite"),
        ("model.vision.pixel_std", "[1, 1, 0]", "model.vision.pixel_std.2: 0 must be above 0 and finite, such as 0.5; "),
        (
            "curriculum.stages.0.until",
            ".nan",
            "curriculum.stages.0 (text).until: nan must be above 0 and at most 1, such as",
        ),
        ("model.language.rotary_percent", ".nan", "model.language.rotary_percent: nan must be above 0 and at most 1"),
        ("schedule.train_epochs.text", ".inf", "schedule.train_epochs.text: inf must be above 0 and finite, such as 1"),
    ],
)
def test_a_run_and_a_plan_are_refused_before_anything_is_worked_out(field: str, value: str, line: str) -> None:
    needed = ["--data.tokenizer", "t", "--data.sources", "{text: a, captions: b}", "--schedule.train_steps", "100"]
    config = load_config(preset="tiny", overrides=[*needed, f"--{field}", value])
    for found in (problems(config, 1), plan_problems(config)):
        (told,) = found
        assert told.startswith(line)
