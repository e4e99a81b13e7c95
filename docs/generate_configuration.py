"""Write docs/configuration.md from the dataclasses of `megatron_vlm.config`.

  python docs/generate_configuration.py            write the file beside this one
  python docs/generate_configuration.py --check    exit with 1 if the file is not what would be written

Names, types and defaults come from the classes themselves; descriptions are the `#:` comments above the fields, which only
the source text has.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from megatron_vlm.config.curriculum import StageConfig
from megatron_vlm.config.loading import PRESET_FOLDER, preset_names
from megatron_vlm.config.run import RunConfig

TARGET = Path(__file__).with_name("configuration.md")

HEAD = """\
# Configuration

<!-- written by docs/generate_configuration.py from the dataclasses; edit the `#:` comments there, then run it again -->

A run is described by the fields below. They come from a preset, then a YAML file, then the command line; each wins over the
one before.

```
megatron-vlm config --preset vlm_1b
megatron-vlm config --config run.yaml --check 8
```

The first prints every field with the values that a run would have. The second refuses what eight ranks could not run, and
says why. On the command line a field is `--section.field VALUE` or `--section.field=VALUE`; values are YAML. One entry of a
map is `--data.sources.text PREFIX`. Stages are a list, numbered from 0: `--curriculum.stages.1.freeze '[vision]'`. A number
may be written `3e-3` or `28e9`.

A YAML file has the same sections. It may start from a preset (`preset: vlm_1b`) or from another file (`base: other.yaml`,
looked for beside it); its own keys win. Maps are merged key by key, except `data.sources` and `data.validation`, where a
file's map replaces the one before whole. A list of stages is replaced whole too. A misspelt key is refused with the nearest
one that exists.

"""


def field_comments(cls: type[Any]) -> dict[str, str]:
    """Field -> the `#:` comment right above it, lines joined. A field without one is missing."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    comments: dict[str, str] = {}
    for node in definition.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        found: list[str] = []
        above = node.lineno - 2
        while above >= 0 and lines[above].strip().startswith("#:"):
            found.insert(0, lines[above].strip().removeprefix("#:").strip())
            above -= 1
        if found:
            comments[node.target.id] = " ".join(found)
    return comments


def _type_text(annotation: str) -> str:
    """The annotation as one would say it: `Literal["a", "b"]` -> `"a"`, `"b"`."""
    tree = ast.parse(annotation, mode="eval").body
    return ", ".join(_type_parts(tree))


def _type_parts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.BinOp):
        yield from _type_parts(node.left)
        yield from _type_parts(node.right)
    elif isinstance(node, ast.Constant) and node.value is None:
        yield "null"
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        values = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        yield from (f"`{value.value}`" for value in values if isinstance(value, ast.Constant))
    else:
        words = {
            "str": "text",
            "tuple[str, ...]": "list of text",
            "dict[str, str]": "map to text",
            "dict[str, float]": "map to float",
        }
        yield words.get(text := ast.unparse(node), text.replace("tuple", "list"))


def _aliases() -> dict[str, str]:
    """Names that annotations use for a set of words -> the words, as a Literal."""
    from megatron_vlm.config import curriculum, model, pictures, precision

    return {
        name: "Literal[" + ", ".join(repr(v) for v in getattr(module, name).__args__) + "]"
        for module, name in (
            *((curriculum, "Measure"), (model, "Normalization"), (model, "Activation")),
            (precision, "Recipe"),
            *((pictures, "DecoderName"), (pictures, "Resize"), (pictures, "BrokenPolicy")),
        )
    }


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return ""
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]
    return f"`{text}`" if text != "''" else ""


def _intro(cls: type[Any]) -> str:
    """The class's own words, unless dataclass made them up."""
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return "" if text.startswith(f"{cls.__name__}(") else text + "\n\n"


def section(path: str, cls: type[Any]) -> Iterator[str]:
    """The table of one dataclass, then those of the dataclasses in it."""
    fields = dataclasses.fields(cls)
    nested = [(f.name, f.default_factory) for f in fields if dataclasses.is_dataclass(f.default_factory)]
    inner = {name for name, _ in nested} | ({"stages"} if path == "curriculum" else set())
    plain = [f for f in fields if f.name not in inner]
    comments, aliases = field_comments(cls), _aliases()
    if plain:
        yield f"## {path}\n\n{_intro(cls)}| field | type | default | |\n|---|---|---|---|\n"
        for field in plain:
            kind = _type_text(aliases.get(str(field.type), str(field.type)))
            yield f"| `{field.name}` | {kind} | {_default_text(field)} | {comments.get(field.name, '')} |\n"
        yield "\n"
    for name, factory in nested:
        yield from section(f"{path}.{name}" if path else name, factory)  # type: ignore[arg-type]
    if path == "curriculum":
        yield from section("curriculum.stages.N", StageConfig)


def presets() -> Iterator[str]:
    yield "## Presets\n\nFiles in `megatron_vlm/config/presets`.\n\n| preset | |\n|---|---|\n"
    for name in preset_names():
        lines = (PRESET_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        words = []
        for line in lines:
            if not line.startswith("#"):
                break
            words.append(line.removeprefix("#").strip())
        yield f"| `{name}` | {' '.join(words)} |\n"


def render() -> str:
    """The whole text of docs/configuration.md."""
    return HEAD + "".join(section("", RunConfig)) + "".join(presets())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    if not args.check:
        TARGET.write_text(render(), encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == render():
        return 0
    print(f"{TARGET} is not current: run python docs/generate_configuration.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
