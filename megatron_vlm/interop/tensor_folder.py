"""Tensors of a Hugging Face folder or of a pickled checkpoint, read one at a time."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_vlm.errors import DataError
from megatron_vlm.interop.layouts import Shape

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE = ("model.safetensors", "pytorch_model.bin")
#: what torch.load raises on a file that is something else, or holds more than it may
_NO_TENSORS = (
    pickle.UnpicklingError,
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
)
_PICKLES = (".bin", ".pt", ".pth")


class TensorFolder:
    """The tensors of a folder, or of one file, by name. Values are mapped from the files and read when they are asked for.

    safetensors are preferred to pickles; pickles are read by `torch.load(weights_only=True, mmap=True)` alone, which runs
    nothing that they hold. `rename` makes the name under which a tensor is known here of its name in the file.

    Attributes:
        shapes: name -> shape, of every tensor.

    Raises:
        DataError: there are no weights, a file is damaged or missing, is no checkpoint, or would run code.
    """

    def __init__(self, where: Path, rename: Callable[[str], str] = lambda name: name) -> None:
        self.where = where
        self._files: dict[str, tuple[Path, str]] = {}
        self._pickled: dict[Path, Mapping[str, Tensor]] = {}
        self._open: tuple[Path, Any] | None = None
        self.shapes: dict[str, Shape] = {}
        for path in _weight_files(where):
            for name, shape in self._contents(path):
                known = rename(name)
                if known in self._files:
                    other = self._files[known]
                    raise DataError(f"{path}: {name} and {other[1]} of {other[0].name} are one tensor; keep one of them")
                self._files[known], self.shapes[known] = (path, name), shape

    def _contents(self, path: Path) -> list[tuple[str, Shape]]:
        if path.suffix in _PICKLES:
            self._pickled[path] = _unpickled(path)
            return [(name, tuple(value.shape)) for name, value in self._pickled[path].items()]
        file = self._safetensors(path)
        return [(name, tuple(file.get_slice(name).get_shape())) for name in file.keys()]  # noqa: SIM118 - no mapping

    def _safetensors(self, path: Path) -> Any:
        """One file is mapped at a time: pages that were read count to the process as long as their map is there."""
        if self._open is None or self._open[0] != path:
            self._open = None
            try:
                self._open = (path, safe_open(str(path), framework="pt"))
            except (OSError, SafetensorError) as error:
                raise DataError(f"{path}: cannot be read ({error}); fetch it again") from None
        return self._open[1]

    def read(self, name: str) -> Tensor:
        """A copy. Raises KeyError where there is none of that name."""
        path, stored = self._files[name]
        if path.suffix in _PICKLES:
            return self._pickled[path][stored].detach().clone()
        return self._safetensors(path).get_tensor(stored).clone()

    def dtype(self, name: str) -> torch.dtype:
        path, stored = self._files[name]
        if path.suffix in _PICKLES:
            return self._pickled[path][stored].dtype
        return _DTYPES[self._safetensors(path).get_slice(stored).get_dtype()]

    def file_of(self, name: str) -> Path:
        return self._files[name][0]

    def stored_name(self, name: str) -> str:
        """As the file spells it."""
        return self._files[name][1]


#: safetensors' names of types
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def read_json(path: Path) -> dict[str, Any]:
    """A map in a file. Raises DataError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected a map at the top")
    return value


def _weight_files(where: Path) -> list[Path]:
    if where.is_file():
        return [where]
    if not where.is_dir():
        raise DataError(f"{where}: not there; give a folder with config.json and weights")
    for name in _INDEXES:
        if (where / name).is_file():
            table = read_json(where / name).get("weight_map")
            if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
                raise DataError(f"{where / name}: no weight_map of tensors to files in it")
            files = sorted({where / file for file in table.values()})
            for path in files:
                if path.parent != where or not path.is_file():
                    raise DataError(f"{where / name}: names {path.name}, which is not there; fetch it")
            return files
    for name in _SINGLE:
        if (where / name).is_file():
            return [where / name]
    found = sorted(where.glob("*.safetensors")) or sorted(p for p in where.iterdir() if p.suffix in (".pt", ".pth"))
    if not found:
        raise DataError(f"{where}: no weights here (model.safetensors, its index, pytorch_model.bin or a .pt)")
    return found


def _unpickled(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a pickle: the file's own map, or the one under `state_dict` or `model`, without `module.` in front."""
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: refused, it holds more than tensors or is damaged ({reason[:200]}); pickles are read by "
            f"torch.load(weights_only=True) alone, safetensors are always safe"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    tensors = {
        str(name).removeprefix("module."): one
        for name, one in (value.items() if isinstance(value, dict) else ())
        if isinstance(one, Tensor)
    }
    if not tensors:
        raise DataError(f"{path}: no map of names to tensors in it")
    return tensors
