"""Files that a verb writes when its work is done."""

from __future__ import annotations

import os
from pathlib import Path


def refuse_unwritable(option: str, path: Path | None) -> None:
    """Before the work what would be found after it; None is fine.

    Raises:
        ConfigError: the folder does not exist or takes no file, or the path is a folder.
    """
    from megatron_vlm.errors import ConfigError

    if path is not None and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)):
        raise ConfigError(f"{option} {path} cannot be written: name a file in a folder that exists")
