"""What the name of an input says: whether it lies elsewhere, and what its file is called."""

from __future__ import annotations

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
