"""CIDEr of captions (Vedantam et al. 2015), by the library that its authors' evaluation of COCO captions became."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec

from megatron_vlm.errors import UserError


def require_captioning() -> None:
    """Raises UserError where the library or what it needs is missing."""
    if find_spec("pycocoevalcap") is None:
        raise UserError("CIDEr is measured by pycocoevalcap, which is not installed: pip install 'megatron_vlm[captions]'")
    if shutil.which("java") is None:
        raise UserError(
            "CIDEr needs `java`: captions are split into words by Stanford's tokenizer, as the published scores are"
        )


def cider_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption against its references, words weighted by how rare they are over all references given.

    The mean over captions is the score that papers print, there often times 100.

    Raises:
        UserError: as `require_captioning`.
    """
    require_captioning()
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    said = {number: [{"caption": caption}] for number, caption in enumerate(captions)}
    given = {number: [{"caption": text} for text in texts] for number, texts in enumerate(references)}
    tokenizer = PTBTokenizer()
    _, scores = Cider().compute_score(tokenizer.tokenize(given), tokenizer.tokenize(said))
    return [float(score) for score in scores]
