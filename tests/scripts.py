"""Scripts that are no part of the package, as modules: what docs/, examples/ and tools/ hold."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_script(path: Path) -> ModuleType:
    """Run a script's top level, not its `main`; its name is that of its file."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # dataclasses look there
    specification.loader.exec_module(module)
    return module
