"""What megatron-core addresses to CUDA, by name: an inventory of its source.

A new name in a new release is something that the host platform's table has not been asked about. Make the snapshot of an
installed release, after reading what is new in it, by

    python tests/parallel/cuda_sites.py
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

#: attributes of tensors and modules that lead to CUDA
_ATTRIBUTES = ("cuda", "is_cuda", "pin_memory")


def snapshot_path(release: str) -> Path:
    return Path(__file__).with_name(f"cuda_sites_{release}.json")


def _dotted(node: ast.expr) -> str | None:
    """`torch.cuda.Event` of such a chain of attributes, None of any other expression."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _is_device_text(value: object) -> bool:
    return isinstance(value, str) and (value == "cuda" or value.startswith(("cuda:", "torch.cuda.")))


def _docstrings(tree: ast.AST) -> set[int]:
    """Strings that stand alone as statements."""
    return {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


def sites(source: str) -> Iterator[str]:
    """Each site of one module's source: `torch.cuda.X`, `.cuda`, `'cuda'` (a device or a type by name), `pin_memory=`."""
    tree = ast.parse(source)
    unread = _docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = _dotted(node)
            if name is not None and name.startswith("torch.cuda.") and name.count(".") == 2:
                yield name
            elif node.attr in _ATTRIBUTES and name != "torch.cuda":
                yield f".{node.attr}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.cuda"):
            yield from (f"from {node.module} import {alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and _is_device_text(node.value) and id(node) not in unread:
            yield repr(node.value)
        elif isinstance(node, ast.keyword) and node.arg == "pin_memory":
            yield "pin_memory="


def inventory() -> dict[str, list[str]]:
    """Name -> the files of the installed megatron-core that use it, both in order."""
    found: dict[str, set[str]] = {}
    spec = importlib.util.find_spec("megatron.core")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations)))
    for path in sorted(root.rglob("*.py")):
        for name in sites(path.read_text(encoding="utf-8")):
            found.setdefault(name, set()).add(path.relative_to(root).as_posix())
    return {name: sorted(files) for name, files in sorted(found.items())}


if __name__ == "__main__":
    target = snapshot_path(version("megatron-core"))
    target.write_text(json.dumps(inventory(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {target}")
