"""Questions: the same ones each time, the own name among three others, placed without a pattern."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from megatron_vlm.data.sources.opening import InputFile, input_file
from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.naming import CHOICES, NamingTask, make_questions


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _pictures(path: Path, names: list[str]) -> InputFile:
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(names):
            png = io.BytesIO()
            Image.new("RGB", (16, 16), (number, 0, 0)).save(png, "PNG")
            _add(tar, f"{number:04d}.png", png.getvalue())
            _add(tar, f"{number:04d}.json", json.dumps({"name": name}).encode())
    return input_file(str(path))


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> InputFile:
    names = [f"thing {n % 20}" for n in range(200)]
    return _pictures(tmp_path_factory.mktemp("tars") / "pictures.tar", names)


def test_the_same_questions_each_time_and_others_under_another_seed(tar: InputFile) -> None:
    questions = make_questions([tar])
    assert questions == make_questions([tar])
    assert [q.choices for q in questions] != [q.choices for q in make_questions([tar], seed=1)]


def test_a_limit_takes_the_first_of_the_same_order(tar: InputFile) -> None:
    assert make_questions([tar], limit=7) == make_questions([tar])[:7]


def test_every_picture_has_its_own_name_among_others(tar: InputFile) -> None:
    questions = make_questions([tar])
    assert len({q.key for q in questions}) == 200
    for question in questions:
        assert len(set(question.choices)) == CHOICES
        assert question.choices[question.answer] == f"thing {int(question.key[-4:]) % 20}"


def test_answers_are_spread_over_the_places(tar: InputFile) -> None:
    places = Counter(q.answer for q in make_questions([tar]))
    assert set(places) == set(range(CHOICES))
    assert min(places.values()) > 30  # 50 each by chance


def test_fewer_than_four_names_are_refused(tmp_path: Path) -> None:
    few = _pictures(tmp_path / "few.tar", ["a", "b", "c", "a"])
    with pytest.raises(DataError, match=r"few\.tar: naming needs 4 different names, and there are 3"):
        make_questions([few])


def test_a_template_without_a_place_for_the_name_is_refused() -> None:
    with pytest.raises(DataError, match="has no"):
        NamingTask(None, "a picture of")  # type: ignore[arg-type]
