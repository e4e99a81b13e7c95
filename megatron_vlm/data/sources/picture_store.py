"""Where the pictures of a record are that only names them: a folder, or uncompressed tars.

A store is small and picklable; a worker that gets one opens its files anew. Tars are gone through once: what is kept of a
member is a digest of its name, and where its bytes are.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from megatron_vlm.data.quarantine import Reason
from megatron_vlm.data.sources.file_names import inner_path, is_remote
from megatron_vlm.data.sources.json_values import shown
from megatron_vlm.data.sources.opening import InputFile, expand_inputs, input_file, open_input
from megatron_vlm.data.sources.splitting import LONGEST_PIECE
from megatron_vlm.data.sources.tar_index import TarIndex, member_digest, open_tar_index
from megatron_vlm.data.sources.unusable import Unusable
from megatron_vlm.errors import ConfigError, DataError

LARGEST_FILE = LONGEST_PIECE  # bytes of one encoded picture


class PictureStore(Protocol):
    """Pictures by name. Instances are small and picklable."""

    def read(self, name: str) -> bytes:
        """The encoded picture called `name`.

        Raises:
            Unusable: MISSING_IMAGE, also for an empty file; ESCAPING_PATH for a name that leads out of the store;
                OVERSIZED_IMAGE beyond `LARGEST_FILE`; DUPLICATE_MEMBER where a tar has two of that name.
            DataError: the disk or the network fails.
        """
        ...

    def check(self) -> None:
        """Raises DataError where the store cannot be used at all. Reads the headers of all tars."""
        ...

    def files(self) -> list[InputFile]:
        """The tars as they are now; none of a folder, whose pictures may come and go one by one. Raises DataError."""
        ...


class TarNames(StrEnum):
    """What a picture in a tar goes by."""

    PATH = "path"  # its whole path in the tar
    FILE_NAME = "file_name"  # the last part of it, whatever folder it is in


class PictureNaming(StrEnum):
    """How the name of a picture in the store follows from what a record says of it, its path or its URL."""

    PATH = "path"  # as it is
    FILE_NAME = "file_name"  # the last part of its path or URL
    URL_SHA256 = "url_sha256"  # hex digest of the URL in UTF-8
    URL_SHA1 = "url_sha1"
    URL_MD5 = "url_md5"


#: added to a digest of a URL, one after the other
DIGEST_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, slots=True)
class FolderPictures:
    """Pictures in a folder, by their path under it.

    Attributes:
        folder: a local folder, or one that fsspec knows ("s3://bucket/images").
        follow_links: symbolic links may lead out of the folder, as those of a Hugging Face cache do. Only for folders that
            nobody else can write links into.
    """

    folder: str
    follow_links: bool = False

    def check(self) -> None:
        if not is_remote(self.folder) and not os.path.isdir(self.folder):
            raise DataError(f"{self.folder} is no folder; give the one that the pictures' paths begin in")

    def files(self) -> list[InputFile]:
        return []

    def read(self, name: str) -> bytes:
        if inner_path(name) is None and not name.startswith(os.sep):  # one from the root may name a file that is under it
            raise Unusable(Reason.ESCAPING_PATH, f"{name!r} leads out of {self.folder}")
        remote = is_remote(self.folder)
        try:
            return self._read_remote(name) if remote else self._read_local(name)
        except Unusable as defect:
            if defect.reason is Reason.MISSING_IMAGE:
                defect.absent = (f"{self.folder.rstrip('/')}/{name}" if remote else os.path.join(self.folder, name),)
            raise

    def _read_local(self, name: str) -> bytes:
        try:
            path = self._path(name)
            if path is None:
                raise Unusable(Reason.ESCAPING_PATH, f"{name!r} leads out of {self.folder}")
            # Without waiting: a pipe would never open. Nor through a link that has come up meanwhile.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if self.follow_links else os.O_NOFOLLOW)
            with open(os.open(path, flags), "rb") as stream:
                status = os.fstat(stream.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise Unusable(Reason.MISSING_IMAGE, f"{name!r} under {self.folder} is no file")
                _check_size(name, status.st_size)
                return stream.read()
        except FileNotFoundError:
            what = ": it is an address, and pictures are not downloaded" if is_remote(name) else ""
            raise Unusable(Reason.MISSING_IMAGE, f"no {name!r} under {self.folder}{what}") from None
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have, with a zero or half a surrogate
            raise Unusable(Reason.MISSING_IMAGE, f"{name!r} under {self.folder} cannot be read: {error}") from None

    def _path(self, name: str) -> str | None:
        """Where `name` is, without links; None where that is not under the folder."""
        path = os.path.join(self.folder, name)
        if self.follow_links:
            root, real = os.path.abspath(self.folder), os.path.abspath(path)
        else:
            # A folder holds many pictures and is resolved once, which on network file systems is most of the time.
            root, (parent, last) = _real_folder(self.folder), os.path.split(path)
            real = os.path.join(_real_folder(parent), last)
            if last in ("", ".", "..") or os.path.islink(real):
                real = os.path.realpath(path)
        return real if real.startswith(root.rstrip(os.sep) + os.sep) else None

    def _read_remote(self, name: str) -> bytes:
        clean = inner_path(name)
        if clean is None or clean == ".":
            raise Unusable(Reason.ESCAPING_PATH, f"{name!r} leads out of {self.folder}")
        try:
            with open_input(f"{self.folder.rstrip('/')}/{clean}") as stream:
                content = stream.read(LARGEST_FILE + 1)
        except DataError as error:
            if isinstance(error.__cause__, (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError)):
                raise Unusable(Reason.MISSING_IMAGE, str(error)) from None
            raise  # a network that is down says nothing of the picture
        _check_size(name, len(content))
        return content


@functools.lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


@dataclass(frozen=True)
class TarPictures:
    """Pictures in uncompressed tars, by their path in the tar or by their file's name alone.

    Attributes:
        tars: paths, or what fsspec opens.
        names: what a picture goes by. "./a/b.jpg" is the same path as "a/b.jpg".
    """

    tars: tuple[str, ...]
    names: TarNames = TarNames.PATH

    def check(self) -> None:
        self._index  # noqa: B018  read now rather than in the middle of a run

    def files(self) -> list[InputFile]:
        return [input_file(tar) for tar in self.tars]

    def read(self, name: str) -> bytes:
        clean = inner_path(name)
        if clean is None:
            raise Unusable(Reason.ESCAPING_PATH, f"{name!r} leads out of its tar")
        index = self._index
        place = index.find(member_digest(clean, self.names is TarNames.FILE_NAME))
        if place is None:
            where = self.tars[0] if len(self.tars) == 1 else f"{len(self.tars)} tars"
            damage = f"; {index.damage[0]}" if index.damage else ""
            raise Unusable(Reason.MISSING_IMAGE, f"no {name!r} in {where}{damage}")
        tar, offset, size, copies = place
        if copies > 1:
            raise Unusable(Reason.DUPLICATE_MEMBER, f"{copies} members are called {name!r}")
        _check_size(name, size)
        with open_input(self.tars[tar]) as stream:
            stream.seek(offset)
            content = stream.read(size)
        if len(content) != size:
            raise Unusable(Reason.MISSING_IMAGE, f"{name!r} is cut short where {self.tars[tar]} ends")
        return content

    @functools.cached_property
    def _index(self) -> TarIndex:
        return open_tar_index(self.tars, self.names is TarNames.FILE_NAME)

    def __getstate__(self) -> dict[str, Any]:
        return {"tars": self.tars, "names": self.names}


def may_be_there(place: str) -> bool:
    """Whether a picture that a folder did not have may be there by now. A store elsewhere is not asked: looking for each
    would take about as long as reading the records again."""
    if is_remote(place):
        return True
    try:
        status = os.stat(place)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def picture_store(
    where: str | Sequence[str], *, names: TarNames | str = TarNames.PATH, follow_links: bool = False
) -> PictureStore:
    """A folder, or tars by name or pattern ("images/*.tar").

    Raises ConfigError for a name that is neither, and DataError for a pattern that matches no file.
    """
    places = [where] if isinstance(where, str) else list(where)
    if not places:
        raise ConfigError("no place for pictures is given; name a folder, or one or more .tar files")
    if not any(place.endswith(".tar") for place in places):
        if len(places) > 1:
            raise ConfigError(f"pictures: {len(places)} folders are given; give one, or .tar files")
        if places[0].endswith((".tar.gz", ".tgz", ".tar.zst", ".zip")):
            raise ConfigError(
                f"pictures: {places[0]} is compressed, and a picture in it cannot be read alone; unpack it, or give a .tar"
            )
        return FolderPictures(places[0], follow_links)
    if odd := [place for place in places if not place.endswith(".tar")]:
        raise ConfigError(f"pictures: {odd[0]} is no .tar as the others are; give tars or one folder")
    tars: dict[str, str] = {}  # by where they are: of a tar that is given twice, all pictures would seem to be there twice
    for place in places:
        for tar in [place] if is_remote(place) else [file.url for file in expand_inputs([place])]:
            tars.setdefault(tar if is_remote(tar) else os.path.realpath(tar), tar)
    return TarPictures(tuple(tars.values()), TarNames(names))


def store_names(reference: str, naming: PictureNaming) -> tuple[str, ...]:
    """What a picture may be called in a store, to be tried in turn."""
    if naming is PictureNaming.PATH:
        return (reference,)
    if naming is PictureNaming.FILE_NAME:
        try:
            path = unquote(urlsplit(reference).path) if "://" in reference else reference
        except ValueError:  # such as "http://[x": no URL, so a name
            path = reference
        return (path.rsplit("/", 1)[-1],)
    digest = hashlib.new(
        naming.value.removeprefix("url_"), reference.encode("utf-8", "surrogatepass"), usedforsecurity=False
    )
    return tuple(digest.hexdigest() + suffix for suffix in DIGEST_SUFFIXES)


def read_picture(reference: Any, store: PictureStore | None, naming: PictureNaming = PictureNaming.PATH) -> bytes:
    """The encoded picture that a record's field means.

    `reference` may be the bytes themselves; a map with "bytes", or else "path" (as Hugging Face's datasets keep pictures);
    a "data:image/...;base64," URL; or a name, which `store` is asked for.

    Raises Unusable: what `PictureStore.read` raises, and MISSING_IMAGE for anything else; `absent` are all the places where
    it was looked for.
    """
    if isinstance(reference, Mapping):
        inner = reference.get("bytes")
        reference = inner if isinstance(inner, bytes) else reference.get("path")
    if isinstance(reference, bytes):
        return reference
    if not isinstance(reference, str) or not reference:
        raise Unusable(Reason.MISSING_IMAGE, f"{shown(reference)} where the name of a picture is expected")
    if reference.startswith("data:"):
        return _inline(reference)
    if store is None:
        raise Unusable(
            Reason.MISSING_IMAGE, f"{shown(reference)} is to be found, and no folder or tar of pictures was given"
        )
    names = store_names(reference, naming)
    absent: tuple[str, ...] = ()
    for name in names:
        if not name:
            break
        try:
            return store.read(name)
        except Unusable as defect:
            if defect.reason is not Reason.MISSING_IMAGE or len(names) == 1:
                raise
            absent += defect.absent
    detail = f"nothing for {shown(reference)} by {naming.value}, tried as {names[0]!r}"
    raise Unusable(Reason.MISSING_IMAGE, detail, absent)


def _inline(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise Unusable(Reason.MISSING_IMAGE, f"a data URL that is not in base64: {shown(head)}")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unusable(Reason.MISSING_IMAGE, f"a data URL whose base64 is broken: {error}") from None


def _check_size(name: str, size: int) -> None:
    if not size:
        raise Unusable(Reason.MISSING_IMAGE, f"{name!r} is empty")
    if size > LARGEST_FILE:
        raise Unusable(Reason.OVERSIZED_IMAGE, f"{name!r} is a file of more than {LARGEST_FILE:,} bytes")
