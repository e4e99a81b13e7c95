"""Real pictures and real tars, made in a moment, and a tokenizer small enough to train for every session."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from megatron_vlm.data.tokenizer import Tokenizer
from megatron_vlm.data.tokenizer_training import train_bpe

MakePicture = Callable[..., bytes]
MakeTar = Callable[[str, Sequence[tuple[str, bytes]]], Path]


@pytest.fixture(scope="session")
def make_picture() -> MakePicture:
    """An encoded picture of one colour in a gradient; sizes are odd where the test asks for it."""

    def make(form: str = "PNG", width: int = 5, height: int = 3, shade: int = 80) -> bytes:
        picture = Image.new("RGB", (width, height), (shade, 255 - shade, 7))
        stream = io.BytesIO()
        picture.save(stream, form)
        return stream.getvalue()

    return make


@pytest.fixture
def make_tar(tmp_path: Path) -> MakeTar:
    """Write named members, in the order given, to tmp_path / name."""

    def make(name: str, members: Sequence[tuple[str, bytes]]) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w") as tar:
            for member, content in members:
                header = tarfile.TarInfo(member)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
        return path

    return make


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(iter(["a red square", "a blue circle", "two red circles, one blue square"] * 4), 300)
