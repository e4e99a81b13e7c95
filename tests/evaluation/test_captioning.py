"""CIDEr through its library: what it says of captions that are right, near and wrong."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest

from megatron_vlm.errors import UserError
from megatron_vlm.evaluation.captioning import cider_scores, require_captioning

REFERENCES = [
    ["A black cat sits on the mat.", "There is a black cat on a mat"],
    ["Two dogs run along a beach", "Two dogs are running on the sand."],
    ["A plate of pasta with tomatoes", "Pasta and tomatoes on a plate"],
]
THERE = find_spec("pycocoevalcap") is not None and shutil.which("java") is not None


@pytest.mark.skipif(not THERE, reason="needs pycocoevalcap and java: pip install 'megatron_vlm[captions]'")
def test_scores() -> None:
    right = cider_scores([texts[0] for texts in REFERENCES], REFERENCES)
    near = cider_scores(["a cat on the mat", "two dogs on a beach", "tomatoes"], REFERENCES)
    wrong = cider_scores([texts[0] for texts in REFERENCES[1:] + REFERENCES[:1]], REFERENCES)
    assert all(a > b > c for a, b, c in zip(right, near, wrong, strict=True))
    assert max(wrong) < 0.05
    # case and punctuation are nothing
    assert cider_scores(["a BLACK cat, sits on the mat", *(t[0] for t in REFERENCES[1:])], REFERENCES) == right


@pytest.mark.skipif(THERE, reason="pycocoevalcap is there")
def test_without_it_the_remedy_is_named() -> None:
    with pytest.raises(UserError, match=r"pip install 'megatron_vlm\[captions\]'|needs `java`"):
        require_captioning()
