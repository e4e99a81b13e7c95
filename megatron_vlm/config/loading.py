"""YAML and command-line overrides into the frozen dataclasses, with errors that name the key and the nearest one.

A YAML file may start from another: `preset: vlm_1b` or `base: ../other.yaml`; its own keys win. An override is
`--schedule.lr 3e-3` or `--schedule.lr=3e-3`; its value is read as YAML, so lists and maps work:
`--data.sources '{text: data/text, captions: data/captions}'`, or one entry of a map:
`--data.sources.text data/text`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from megatron_vlm.config.not_offered import NOT_OFFERED
from megatron_vlm.config.run import RunConfig
from megatron_vlm.errors import ConfigError

PRESET_FOLDER = Path(__file__).parent / "presets"
T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 3e-3 and 1e9 are floats, which PyYAML's 1.1 rules read as text."""


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers, such as a folder called 1e5."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9][0-9_]*)(\.[0-9_]*)?([eE][-+]?[0-9]+)$"),
        list("-+0123456789"),
    )


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {error}") from None


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESET_FOLDER.glob("[!_]*.yaml"))


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(value) for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _type_name(a) for a in typing.get_args(annotation))
    if origin is None and isinstance(annotation, type):
        return {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}.get(
            annotation.__name__, annotation.__name__
        )
    return str(annotation).replace("typing.", "")


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """`value` as YAML gave it, as the annotated type; ConfigError with the place if it does not fit."""
    if annotation is Any:
        return value
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return build(annotation, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        for option in args:
            if option is not type(None):
                return _convert(value, option, where)
    if origin is typing.Literal:
        if value in args:
            return value
        hint = _nearest(value, [str(a) for a in args]) if isinstance(value, str) else ""
        raise ConfigError(f"{where}: {value!r} is not {_type_name(annotation)}{hint}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, got {len(value)}")
        return tuple(_convert(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, args, strict=True)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a map of names to values, got {value!r}")
        return {str(k): _convert(v, args[1], f"{where}.{k}") for k, v in value.items()}
    if annotation is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if annotation is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 2e9 tokens
    if annotation is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if annotation is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    if annotation is bool and isinstance(value, bool):
        return value
    raise ConfigError(f"{where}: {value!r} is not {_type_name(annotation)}")


def build(cls: type[T], values: Any, where: str) -> T:
    """A frozen dataclass of what YAML gave; ConfigError names the key under `where`, and the nearest that there is."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'configuration'}: expected a map of fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    prefix = f"{where}." if where else ""
    for key in values:
        if key in NOT_OFFERED and key not in hints:
            raise ConfigError(f"{prefix}{key}: not offered: {NOT_OFFERED[key]}")
        if key not in hints:
            raise ConfigError(f"{prefix}{key}: unknown key{_nearest(str(key), list(hints))}")
    converted = {key: _convert(value, hints[key], f"{prefix}{key}") for key, value in values.items()}
    return cls(**converted)


def merge(base: Mapping[str, Any], over: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`over` laid on `base`: maps are merged key by key, save maps of sources, where the later replaces the whole."""
    result = dict(base)
    for key, value in over.items():
        replaces = f"{path}{key}" in ("data.sources", "data.validation", "data.features")
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping) and not replaces:
            result[key] = merge(result[key], value, f"{path}{key}.")
        else:
            result[key] = value
    return result


def read_config_file(path: Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The raw map of a YAML file with its `preset:` or `base:` resolved."""
    path = path.resolve()
    if path in _seen:
        raise ConfigError(f"{path}: `base` goes round in a circle through {' -> '.join(str(p) for p in _seen)}")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    raw = parse_yaml(text, str(path)) or {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a map of sections at the top")
    preset, base = raw.pop("preset", None), raw.pop("base", None)
    if preset and base:
        raise ConfigError(f"{path}: give `preset` or `base`, not both")
    if preset:
        return merge(read_preset(str(preset)), raw)
    if base:
        return merge(read_config_file(path.parent / str(base), (*_seen, path)), raw)
    return raw


def read_preset(name: str) -> dict[str, Any]:
    path = PRESET_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"preset {name!r} is not known{_nearest(name, preset_names())}")
    return read_config_file(path)


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`["--a.b", "1", "--c.d=x"]` -> {"a": {"b": 1}, "c": {"d": "x"}}."""
    result: dict[str, Any] = {}
    items = list(arguments)
    while items:
        item = items.pop(0)
        if not item.startswith("--") or "." not in item.split("=", 1)[0]:
            raise ConfigError(f"argument {item!r} is not understood; an override is --section.field VALUE")
        key, equals, text = item[2:].partition("=")
        if not equals:
            if not items:
                raise ConfigError(f"--{key}: a value is missing")
            text = items.pop(0)
        value = parse_yaml(text, f"--{key}")
        parts = key.split(".")
        node = result
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--{key}: {part!r} was already given a value")
        earlier = node.get(parts[-1])
        if isinstance(earlier, Mapping) and isinstance(value, Mapping):
            value = merge(earlier, value)
        node[parts[-1]] = value
    return result


def _overridden(raw: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides merge into maps of sources too, so that one entry can be set alone; list items by number."""
    result = dict(raw)
    for key, value in overrides.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            result[key] = _overridden(dict(old), value)
        elif isinstance(value, Mapping) and isinstance(old, list) and all(str(k).isdigit() for k in value):
            items = list(old)
            for index, item in value.items():
                if int(index) >= len(items):
                    raise ConfigError(f"{key}.{index}: there are only {len(items)} entries, numbered from 0")
                fits = isinstance(item, Mapping) and isinstance(items[int(index)], Mapping)
                items[int(index)] = _overridden(dict(items[int(index)]), item) if fits else item
            result[key] = items
        else:
            result[key] = value
    return result


def load_config(*, preset: str | None = None, file: Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The resolved configuration: preset, then file, then overrides, each over the one before.

    Raises:
        ConfigError: an unknown key (with the nearest name), a value of the wrong kind, unreadable YAML.
    """
    raw: dict[str, Any] = read_preset(preset) if preset else {}
    if file is not None:
        raw = merge(raw, read_config_file(file))
    return build(RunConfig, _overridden(raw, parse_overrides(overrides)), "")


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> tuple[RunConfig, dict[str, Any]]:
    """`config` with `--section.field VALUE` overrides, and the overrides alone as a map. Raises ConfigError."""
    given = parse_overrides(overrides)
    return build(RunConfig, _overridden(to_map(config), given), ""), given


def from_map(raw: Mapping[str, Any]) -> RunConfig:
    """The configuration in a map, as `to_map` made it."""
    return build(RunConfig, raw, "")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def to_map(config: RunConfig) -> dict[str, Any]:
    """Plain maps and lists, ready for YAML or JSON."""
    return _plain(config)


def to_yaml(config: RunConfig) -> str:
    """The configuration as YAML that `load_config(file=...)` reads back to the same."""
    return yaml.dump(to_map(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
