"""A study as a small YAML file: a base configuration, two kinds of stage, axes, grids over them, and what is evaluated."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_vlm.config.loading import build, parse_yaml
from megatron_vlm.errors import ConfigError

#: axes whose values may be given as a plain list, and the path in the study that each value is put at
KNOWN_AXES: dict[str, str] = {
    "introduction": "introduction",
    "visual_share": "images.sources",
    "lr_policy": "images.lr_policy",
    "image_size": "images.image_size",
    "image_pool": "images.image_pool",
    "finetune_epochs": "finetune.epochs",
    "seed": "base.schedule.seed",
}
#: what an axis may change
ROOTS = ("introduction", "base", "text", "images", "length", "finetune")
Value = Mapping[str, Any]


@dataclass(frozen=True)
class LengthConfig:
    """How long runs are, in steps."""

    #: of the whole text trunk; introduction points are shares of it
    text_steps: int = 0
    #: of the stage with images, after the point at which they enter. null: up to `text_steps`, so that all runs are as long
    image_steps: int | None = None


@dataclass(frozen=True)
class FinetuneConfig:
    """An instruction stage after every branch: a run of its own that begins with the branch's weights."""

    #: fields of a run's configuration laid over the base, without a curriculum of its own: `stage` is the one stage
    set: dict[str, Any] = field(default_factory=dict)
    #: the stage: sources, measure, freeze, ...
    stage: dict[str, Any] = field(default_factory=dict)
    #: passes over `source`
    epochs: float = 1.0
    #: whose passes are counted
    source: str = ""
    #: positions of one pass, for plans made before the dataset is there
    pass_positions: float | None = None


@dataclass(frozen=True)
class EvaluateConfig:
    """What every branch's end is measured with, and again after fine-tuning. See `megatron-vlm evaluate`."""

    #: files or folders of tasks
    tasks: tuple[str, ...] = ()
    #: naming of pictures: name -> glob of tars
    naming: dict[str, str] = field(default_factory=dict)
    naming_key: str = "name"
    template: str = "{name}"
    #: the blind and shuffled controls of tasks with pictures
    controls: tuple[str, ...] = ("blind",)
    #: questions and documents at most (0: all)
    limit: int = 0
    #: after pre-training too, not only after fine-tuning
    before_finetune: bool = True


@dataclass(frozen=True)
class StudyFile:
    """What `study` commands read. Paths in it are as those of any configuration: from where the command is given."""

    name: str = "study"
    #: a line for the report
    title: str = ""
    #: where segments and the report go; null: studies/NAME
    directory: str | None = None
    #: a configuration file's keys (`preset:`, `base:`, model, data, ...), without curriculum and length
    base: dict[str, Any] = field(default_factory=dict)
    #: fields of the stage before images enter, and of the stage from there on
    text: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    length: LengthConfig = field(default_factory=LengthConfig)
    #: axis -> its values: a list for a known axis, or a map of a name to what it changes, by dotted path. The first is the
    #: one that holds where a grid does not name the axis
    axes: dict[str, Any] = field(default_factory=dict)
    #: grid -> axis -> values by name, or `all`
    grids: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: points that are left out: axis -> value or list of values; a point that matches one of them in all its axes goes
    exclude: tuple[dict[str, Any], ...] = ()
    finetune: FinetuneConfig | None = None
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    #: what the visual_share axis sets: the source with pictures whose weight it is, in the measure of `images`
    visual_source: str = "captions"

    @property
    def folder(self) -> Path:
        return Path(self.directory or Path("studies") / self.name)


def read_study(path: Path) -> StudyFile:
    """
    Raises:
        ConfigError: the file cannot be read, or says what no study has; names the key and the nearest there is.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    study = build(StudyFile, parse_yaml(text, str(path)) or {}, str(path))
    axis_values(study)  # each is checked
    _check_grids(study, path)
    if study.length.text_steps < 1:
        raise ConfigError(f"{path}: length.text_steps: say how many steps the text trunk has")
    if study.finetune is not None and not study.finetune.source:
        raise ConfigError(f"{path}: finetune.source: name the source whose passes finetune.epochs counts")
    return study


def axis_values(study: StudyFile) -> dict[str, dict[str, Value]]:
    """Axis -> name of a value -> what it changes, by dotted path.

    Raises:
        ConfigError: an axis without values, two values with one name, a list for an axis that is not known, or a path that
            nothing has.
    """
    found: dict[str, dict[str, Value]] = {}
    for axis, given in study.axes.items():
        where = f"axes.{axis}"
        if isinstance(given, list):
            if axis not in KNOWN_AXES:
                raise ConfigError(
                    f"{where}: a list of values needs an axis that is known ({', '.join(KNOWN_AXES)}); for another give a "
                    f"map of names to changes, such as {{frozen: {{images.freeze: [vision]}}}}{_near(axis, KNOWN_AXES)}"
                )
            path = f"images.sources.{study.visual_source}" if axis == "visual_share" else KNOWN_AXES[axis]
            values = _named(where, [(value, {path: value}) for value in given])
        elif isinstance(given, Mapping):
            values = _named(where, [(name, dict(change or {})) for name, change in given.items()])
        else:
            raise ConfigError(f"{where}: expected a list of values or a map of names to changes, got {given!r}")
        if not values:
            raise ConfigError(f"{where}: has no values")
        for name, change in values.items():
            for path in change:
                root = path.split(".")[0]
                if root not in ROOTS:
                    raise ConfigError(f"{where}.{name}: {path}: begins with none of {', '.join(ROOTS)}{_near(root, ROOTS)}")
        found[axis] = values
    return found


def _named(where: str, given: Sequence[tuple[Any, Value]]) -> dict[str, Value]:
    named: dict[str, Value] = {}
    values: dict[str, Any] = {}
    for value, change in given:
        name = name_of(value)
        if name in named:
            raise ConfigError(f"{where}: {values[name]!r} and {value!r} are both named {name}; give each value once")
        named[name], values[name] = change, value
    return named


def name_of(value: Any) -> str:
    """0.2 and "0.2" are one name; 1.0 is "1". Two numbers that differ have two names."""
    if not isinstance(value, float):
        return str(value)
    if value.is_integer():
        return str(int(value))
    short = f"{value:g}"  # six digits; more where these are another number
    return short if float(short) == value else repr(value)


def _check_grids(study: StudyFile, path: Path) -> None:
    known = axis_values(study)
    for grid, axes in study.grids.items():
        for axis, chosen in axes.items():
            _check_axis(f"{path}: grids.{grid}.{axis}", axis, known)
            if chosen != "all":
                _check_names(f"{path}: grids.{grid}.{axis}", chosen, known[axis])
    for number, rule in enumerate(study.exclude):
        for axis, chosen in rule.items():
            _check_axis(f"{path}: exclude[{number}].{axis}", axis, known)
            _check_names(f"{path}: exclude[{number}].{axis}", chosen, known[axis])


def _check_axis(where: str, axis: str, known: Mapping[str, Any]) -> None:
    if axis not in known:
        raise ConfigError(f"{where}: no such axis{_near(axis, known)}")


def _check_names(where: str, chosen: Any, values: Mapping[str, Any]) -> None:
    for value in chosen if isinstance(chosen, list) else [chosen]:
        if name_of(value) not in values:
            raise ConfigError(f"{where}: {value!r} is none of its values ({', '.join(values)})")


def _near(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
