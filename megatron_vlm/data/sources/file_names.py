"""What names say: whether an input lies elsewhere, what its file and folder are called, and whether a path leads out."""

from __future__ import annotations

import os
import posixpath
import re

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_remote(url: str) -> bool:
    """Whether `url` has a scheme ("s3://bucket/key") and so is opened through fsspec."""
    return _SCHEME.match(url) is not None


def base_name(url: str) -> str:
    """The file's name without folders; of a web address, without its query."""
    if url.startswith(("http://", "https://")):
        url = re.split(r"[?#]", url, maxsplit=1)[0]
    return url.rstrip("/").rpartition("/")[2]


def folder_of(url: str) -> str:
    """The folder that a file lies in."""
    return posixpath.dirname(url) if is_remote(url) else os.path.dirname(url) or "."


def may_lead_out(name: str) -> bool:
    """Whether `inner_path` has to be asked: what it gives None for has one of these."""
    return ".." in name or "\\" in name or name.startswith("/")


def inner_path(name: str) -> str | None:
    """A path within a folder or a tar in its plain form, without "./" and the like; None for one that leads out.

    Backslashes lead out as slashes do: who wrote the name may have meant them so.
    """
    clean = posixpath.normpath(name)
    meant = posixpath.normpath(name.replace("\\", "/")) if "\\" in name else clean
    return None if any(path == ".." or path.startswith(("/", "../")) for path in (clean, meant)) else clean
