"""Four-way naming: which of four names does the model find likeliest under a picture?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_vlm.data.decoding.decoder import open_decoder
from megatron_vlm.data.pictures import decode_picture, picture_canvas
from megatron_vlm.data.quarantine import Rejection
from megatron_vlm.data.records import Picture, Text
from megatron_vlm.data.sources.choose import image_text_source
from megatron_vlm.data.sources.opening import InputFile
from megatron_vlm.data.sources.reading import read_file
from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.ops.assemble import MODALITY_CAPTION, Segment
from megatron_vlm.training.scoring import Scored, rows_of

CHOICES = 4


@dataclass(frozen=True)
class Question:
    """A picture and four names; `choices[answer]` is its own."""

    key: str
    image: bytes
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Naming:
    """Shares of questions answered right; a guess gets `chance`.

    accuracy: by the likelihood of the whole name. per_token: by its mean over the name's tokens. calibrated: by how much
    the picture raises it over a grey one, so that a name that is common anyway gains nothing. blind: by likelihood
    under another question's picture. `error` is the standard error of a share of one half at this number of questions.
    """

    questions: int
    chance: float
    accuracy: float
    per_token: float
    calibrated: float
    blind: float
    error: float


@dataclass(frozen=True)
class _Named:
    key: str
    image: bytes
    name: str


def _rank(seed: int, *parts: str) -> bytes:
    return hashlib.sha256("\x00".join((str(seed), *parts)).encode()).digest()


def make_questions(tars: Sequence[InputFile], name_key: str = "name", seed: int = 0, limit: int = 0) -> list[Question]:
    """One question a picture: its own name among three others of the same files, drawn and placed by a hash.

    Raises:
        DataError: a record without a usable picture or name, or fewer than four names.
    """
    records: list[_Named] = []
    for tar in tars:
        for found in read_file(image_text_source(tar.url, captions=name_key), tar):
            if isinstance(found, Rejection):
                raise DataError(f"{found.file}, {found.key}: {found.reason}: {found.detail}")
            picture, name = found.documents[0]
            assert isinstance(picture, Picture)
            assert isinstance(name, Text)
            records.append(_Named(found.key, picture.encoded, name.text))
    names = sorted({record.name for record in records})
    if len(names) < CHOICES:
        raise DataError(f"{tars[0].url}: naming needs {CHOICES} different names, and there are {len(names)}")
    records.sort(key=lambda record: _rank(seed, record.key))
    questions = []
    for record in records[: limit or None]:
        own = record.name
        others = sorted((n for n in names if n != own), key=lambda name: _rank(seed, record.key, name))
        choices = sorted([own, *others[: CHOICES - 1]], key=lambda name: _rank(seed, "place", record.key, name))
        questions.append(Question(record.key, record.image, tuple(choices), choices.index(own)))
    return questions


class NamingTask:
    """Scores questions with a model. A document is the picture, the words around the name, the name, its end."""

    def __init__(self, scorer: Scorer, template: str = "{name}") -> None:
        self.scorer = scorer
        before, mark, after = template.partition("{name}")
        if not mark:
            raise DataError(f"naming template {template!r} has no {{name}}")
        self._before, self._after = before, after

    def _document(self, picture: np.ndarray | None, name: str, family: int) -> Scored:
        tokens = self.scorer.tokens
        pictures = () if picture is None else (picture,)
        placeholders = [tokens.image_token_id] * rows_of(self.scorer.shape, pictures, 1)
        text = self.scorer.tokenizer.encode(self._before + name + self._after)
        prefix = self.scorer.tokenizer.encode(self._before.rstrip())
        shared = len(prefix) if text[: len(prefix)] == prefix else 0
        ids = np.array([*placeholders, *text, tokens.eod_id], np.int32)
        segment = Segment(ids, MODALITY_CAPTION, loss_from=len(placeholders) - 1 + shared)
        return Scored(segment, pictures, family)

    def _asked(self, questions: Sequence[Question], pictures: Sequence[np.ndarray | None], family: int) -> list[Scored]:
        return [
            self._document(picture, name, family + number)
            for number, (question, picture) in enumerate(zip(questions, pictures, strict=True))
            for name in question.choices
        ]

    def measure(self, questions: Sequence[Question]) -> Naming:
        config = self.scorer.config
        shape, decodes = self.scorer.shape, self.scorer.decodes
        decoder = open_decoder(config.data.pictures, config.model.vision.pixel_mean)
        pictures: list[np.ndarray | None] = [
            decode_picture(q.image, picture_canvas(q.image, shape), f"naming, {q.key}", decoder) if decodes else None
            for q in questions
        ]
        grey = np.full((shape.image_size, shape.image_size, 3), 127, np.uint8) if decodes else None
        names = sorted({name for q in questions for name in q.choices})
        seen = self._asked(questions, pictures, 0)
        moved = pictures[1:] + pictures[:1]
        blind = self._asked(questions, moved, len(questions))
        without = [self._document(grey, name, 2 * len(questions)) for name in names]
        scores = self.scorer.score([*seen, *blind, *without])
        likelihood = -scores[: len(seen), 0].reshape(-1, CHOICES)
        lengths = scores[: len(seen), 1].reshape(-1, CHOICES)
        unseen = -scores[len(seen) : 2 * len(seen), 0].reshape(-1, CHOICES)
        prior = dict(zip(names, -scores[2 * len(seen) :, 0], strict=True))
        priors = np.array([[prior[name] for name in q.choices] for q in questions])
        answers = np.array([q.answer for q in questions])

        def right(values: np.ndarray) -> float:
            return float((values.argmax(axis=1) == answers).mean())

        return Naming(
            questions=len(questions),
            chance=1 / CHOICES,
            accuracy=right(likelihood),
            per_token=right(likelihood / lengths),
            calibrated=right(likelihood - priors),
            blind=right(unseen),
            error=float(0.5 / np.sqrt(len(questions))),
        )
