"""The runs that a study asks for: a value for every axis, and the configuration that these come to."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vlm.config.checks import plan_problems
from megatron_vlm.config.loading import from_map, merge, read_config_file, read_preset
from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import ConfigError
from megatron_vlm.study.study_file import EvaluateConfig, FinetuneConfig, StudyFile, axis_values, name_of

#: names of the two stages
TEXT, IMAGES = "text", "images"


@dataclass(frozen=True)
class Point:
    """One run of the study.

    Attributes:
        values: axis -> name of its value, every axis of the study.
        grids: that ask for it.
        config: of the whole run, from its first step to its last.
        trunk: of the text trunk that it branches from, to its end; whatever its own introduction is.
        introduction: step before which images enter; the run's length where they never do.
        finetune: None where the study has none.
    """

    values: tuple[tuple[str, str], ...]
    grids: tuple[str, ...]
    config: RunConfig
    trunk: RunConfig
    introduction: int
    finetune: FinetuneConfig | None
    evaluate: EvaluateConfig

    @property
    def name(self) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in self.values) or "the one run"

    def value(self, axis: str) -> str | None:
        return dict(self.values).get(axis)


def study_points(study: StudyFile) -> list[Point]:
    """Every run that a grid asks for, each once. Without grids, one run of first values.

    Raises:
        ConfigError: a run that cannot be: names the point, and each reason with the nearest value that works.
    """
    axes = axis_values(study)
    asked: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for grid, chosen in (study.grids or {"all": {}}).items():
        for values in _product(axes, chosen):
            if not any(_matches(rule, dict(values)) for rule in study.exclude):
                asked.setdefault(values, []).append(grid)
    if not asked:
        raise ConfigError(f"study {study.name}: no point is left; grids and exclude leave nothing")
    base = _base_map(study)
    return [_point(study, base, axes, values, tuple(grids)) for values, grids in asked.items()]


def _product(axes: Mapping[str, Mapping[str, Any]], chosen: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], ...]]:
    lists = []
    for axis, values in axes.items():
        names = list(values)
        wanted = chosen.get(axis, names[:1])
        given = names if wanted == "all" else [name_of(v) for v in (wanted if isinstance(wanted, list) else [wanted])]
        lists.append([(axis, name) for name in given])
    yield from itertools.product(*lists)


def _matches(rule: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    return all(
        values.get(axis) in [name_of(v) for v in (wanted if isinstance(wanted, list) else [wanted])]
        for axis, wanted in rule.items()
    )


def _base_map(study: StudyFile) -> dict[str, Any]:
    """The base configuration as a map, its preset or file resolved."""
    raw = dict(study.base)
    below: dict[str, Any] = {}
    if "preset" in raw:
        below = read_preset(str(raw.pop("preset")))
    if "config" in raw:
        below = merge(below, read_config_file(Path(str(raw.pop("config")))))
    for key in ("curriculum",):
        below.pop(key, None)
        if raw.pop(key, None) is not None:
            raise ConfigError(f"study {study.name}: base.{key}: the study makes it from `text` and `images`")
    for key in ("train_tokens", "train_steps", "train_epochs"):
        below.get("schedule", {}).pop(key, None)
        if key in raw.get("schedule", {}):
            raise ConfigError(f"study {study.name}: base.schedule.{key}: say `length` instead")
    return merge(below, raw)


def _point(
    study: StudyFile,
    base: Mapping[str, Any],
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]],
    values: tuple[tuple[str, str], ...],
    grids: tuple[str, ...],
) -> Point:
    finetune = study.finetune
    told: dict[str, Any] = {
        "introduction": 1.0,
        "base": copy.deepcopy(dict(base)),
        "text": copy.deepcopy(study.text),
        "images": copy.deepcopy(study.images),
        "length": {"text_steps": study.length.text_steps, "image_steps": study.length.image_steps},
        "finetune": {} if finetune is None else {**vars(finetune)},
    }
    for axis, name in values:
        for path, value in axes[axis][name].items():
            _put(told, path, value)
    where = ", ".join(f"{axis} {value}" for axis, value in values) or "the one run"
    try:
        config, step = _run_config(told)
        whole = {**told, "introduction": 1.0, "length": {**told["length"], "image_steps": None}}
        trunk, _ = _run_config(whole)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    found = plan_problems(config)
    if found:
        raise ConfigError(f"{where} cannot be run:\n" + "\n".join(f"  - {line}" for line in found))
    return Point(
        values, grids, config, trunk, step, None if finetune is None else FinetuneConfig(**told["finetune"]), study.evaluate
    )


def _put(told: dict[str, Any], path: str, value: Any) -> None:
    *roots, last = path.split(".")
    place = told
    for root in roots:
        place = place.setdefault(root, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{path}: {root} is no map")
    place[last] = value


def _run_config(told: Mapping[str, Any]) -> tuple[RunConfig, int]:
    _share_the_rest(told)
    share, length = told["introduction"], told["length"]
    if not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise ConfigError(f"introduction: {share!r} is no share of the text trunk, from 0 to 1")
    text_steps, image_steps = int(length["text_steps"]), length["image_steps"]
    step = round(share * text_steps)
    total = text_steps if image_steps is None else step + int(image_steps)
    if total < max(1, step):
        raise ConfigError(
            f"length.image_steps: {image_steps} after introduction {share:g} leaves no run: it would end at step {total}, "
            f"and images enter at step {step}; give at least {max(0, 1 - step)}"
        )
    stages = []
    if step > 0:
        stages.append({**told["text"], "name": TEXT, "until_steps": step})
    if step < total:
        stages.append({**told["images"], "name": IMAGES})
    else:
        del stages[-1]["until_steps"]
    schedule = {"train_steps": total}
    if image_steps is not None:
        schedule["decay_steps"] = text_steps
    config = from_map(merge(told["base"], {"curriculum": {"stages": stages}, "schedule": schedule}))
    return config, step


def _share_the_rest(told: Mapping[str, Any]) -> None:
    """Where images are counted in visual tokens, the sources of the text stage share what the others leave, so that an axis
    names a visual share and nothing else."""
    sources = told["images"].get("sources", {})
    plain = [name for name in sources if name in told["text"].get("sources", {})]
    if told["images"].get("measure") != "visual_tokens" or not plain:
        return
    left = 1.0 - sum(weight for name, weight in sources.items() if name not in plain)
    total = sum(sources[name] for name in plain)
    if total > 0 and left > 0:
        told["images"]["sources"] = {n: w * left / total if n in plain else w for n, w in sources.items()}
