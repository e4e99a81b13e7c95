"""A checkpoint as a model of lmms-eval, whose tasks with pictures then run on it as they are.

A prompt is a question's pictures, then its text, as the model is trained. Requests are generated and scored in batches, in
any tensor, pipeline and data parallel layout; every rank runs the harness on the same requests.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

from megatron_vlm.data.decoding.decoder import open_decoder
from megatron_vlm.data.pictures import decode_picture, picture_canvas
from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.generation import Generator, Prompt, cut
from megatron_vlm.evaluation.prompts import Choice, segment_of, split_ids
from megatron_vlm.evaluation.sampling import Sampling
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.training.scoring import Scored, rows_of

#: requests whose pictures are held, and which are answered together
_BLOCK = 256
Pixels = npt.NDArray[np.uint8]


class VisualHarnessModel(lmms):
    """What lmms-eval calls. `max_new_tokens` is of an answer whose task does not say."""

    def __init__(self, scorer: Scorer, max_new_tokens: int = 128) -> None:
        super().__init__()
        self.scorer, self.max_new_tokens = scorer, max_new_tokens
        config = scorer.config
        self._decoder = open_decoder(config.data.pictures, config.model.vision.pixel_mean)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer to each, up to the first of its `until`."""
        answers = [""] * len(requests)
        for settings in {repr(request.args[1]): request.args[1] for request in requests}.values():
            numbers = [n for n, request in enumerate(requests) if request.args[1] == settings]
            for start in range(0, len(numbers), _BLOCK):
                block = numbers[start : start + _BLOCK]
                for number, text in zip(block, self._generate([requests[n] for n in block], settings), strict=True):
                    answers[number] = text
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation after pictures and context: log-likelihood in nats, and whether greedy decoding says it."""
        found: list[tuple[float, bool]] = []
        for start in range(0, len(requests), _BLOCK):
            documents, asked, family = [], None, 0
            for request in requests[start : start + _BLOCK]:
                context, target, doc_to_visual, number, task, split = request.args
                document = self.task_dict[task][split][number]
                answer = target if isinstance(target, str) else target(document)
                family += asked is not None and asked != (task, split, number)
                asked = (task, split, number)
                documents.append(self._document(plain(context), answer, self._pictures(doc_to_visual, document), family))
            scores = self.scorer.score(documents, greedy=True)
            found += [(-float(nll), bool(likeliest == count)) for nll, count, likeliest in scores.tolist()]
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError("dialogues of several rounds, each of which sees the answers before it, are not there")

    # -- ours ------------------------------------------------------------------------------------------------------

    def _pictures(self, doc_to_visual: Callable[[Any], Sequence[Any] | None], document: Any) -> tuple[list[Pixels], int]:
        """Decoded as the run shows pictures (on ranks that need them), and how many there are."""
        images = list(doc_to_visual(document) or ())
        if not self.scorer.decodes:
            return [], len(images)
        found = []
        for image in images:
            if not hasattr(image, "save"):
                raise DataError(f"lmms-eval gives a {type(image).__name__} to see, and the model sees pictures alone")
            stream = io.BytesIO()
            image.save(stream, "PNG")
            encoded = stream.getvalue()
            canvas = picture_canvas(encoded, self.scorer.shape)
            found.append(decode_picture(encoded, canvas, "a picture of lmms-eval", self._decoder))
        return found, len(images)

    def _document(self, context: str, answer: str, shown: tuple[list[Pixels], int], family: int) -> Scored:
        pictures, count = shown
        kept = context.rstrip()
        before, after = split_ids(self.scorer.tokenizer, Choice(kept, context[len(kept) :] + answer))
        rows = rows_of(self.scorer.shape, pictures, count)
        capacity = self.scorer.shape.sequence_length
        return Scored(segment_of(self.scorer.tokenizer, before, after, rows, capacity), tuple(pictures), family)

    def _generate(self, requests: Sequence[Instance], settings: dict[str, Any]) -> list[str]:
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        most = int(settings.get("max_new_tokens") or self.max_new_tokens)
        temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        generator, decode = Generator(self.scorer), self.scorer.tokenizer.decode
        prompts: list[Prompt] = []
        for request in requests:
            context, _, doc_to_visual, number, task, split = request.args
            pictures, count = self._pictures(doc_to_visual, self.task_dict[task][split][number])
            prompts.append(generator.prompt(plain(context), pictures, count))
        sampling = Sampling(most, temperature, top_p=float(settings.get("top_p") or 1.0))
        ends = (lambda _, ids: cut(decode(ids), until) != decode(ids)) if until else None
        return [cut(decode(answer.ids), until) for answer in generator.generate(prompts, sampling, ends=ends)]


def plain(context: str) -> str:
    """The text of a context: the marks of pictures, which stand before it, are taken out."""
    return context.replace("<image>", "").lstrip("\n")
