"""A checkpoint as a model of EleutherAI's lm-evaluation-harness, whose tasks then run on it as they are.

Requests are scored packed and generated in batches, in any tensor, pipeline and data parallel layout. Every rank runs the
harness on the same requests; each of its calls is one of ours, which all ranks make together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from megatron_vlm.evaluation.generation import Generator, Prompt, cut
from megatron_vlm.evaluation.prompts import Choice, segment_of, split_ids
from megatron_vlm.evaluation.sampling import Sampling
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.training.scoring import Scored

#: requests whose documents are scored together
_BLOCK = 4096


class HarnessModel(LM):
    """What the harness calls. `max_gen_toks` is of an answer whose task does not say."""

    def __init__(self, scorer: Scorer, max_gen_toks: int = 256) -> None:
        super().__init__()
        self.scorer, self.max_gen_toks = scorer, max_gen_toks

    @property
    def tokenizer_name(self) -> str:
        return self.scorer.tokenizer.fingerprint

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of each (context, continuation): log-likelihood in nats, and whether greedy decoding says it."""
        pairs = []
        for request in requests:
            context, continuation = request.args
            kept = context.rstrip()  # the harness too gives white space at the border to the continuation
            pairs.append(split_ids(self.scorer.tokenizer, Choice(kept, context[len(kept) :] + continuation)))
        return [(value, greedy) for value, greedy, _ in self._score(pairs)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of each whole text, in windows of a row of the model, after an end of document."""
        capacity, pairs, owner = self.scorer.shape.sequence_length, [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.scorer.tokenizer.encode(request.args[0]),
                prefix_token=self.scorer.tokens.eod_id,
                max_seq_len=capacity,
                context_len=1,
            )
            for before, after in map(make_disjoint_window, windows):
                pairs.append((list(before), list(after)))
                owner.append(number)
        totals = np.zeros(len(requests))
        for number, (value, _, _) in zip(owner, self._score(pairs), strict=True):
            totals[number] += value
        return totals.tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to the first of its `until`."""
        answers = [""] * len(requests)
        for settings in {repr(request.args[1]): request.args[1] for request in requests}.values():
            numbers = [n for n, request in enumerate(requests) if request.args[1] == settings]
            for number, text in zip(numbers, self._generate([requests[n].args[0] for n in numbers], settings), strict=True):
                answers[number] = text
        return answers

    # -- ours ------------------------------------------------------------------------------------------------------

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool, int]]:
        capacity, found = self.scorer.shape.sequence_length, []
        for start in range(0, len(pairs), _BLOCK):
            block = pairs[start : start + _BLOCK]
            segments = [segment_of(self.scorer.tokenizer, b, a[-capacity:], 0, capacity) for b, a in block]
            # neighbours are a question's choices, as far as their contexts are the same
            family, documents = 0, []
            for number, segment in enumerate(segments):
                family += number > 0 and block[number][0] != block[number - 1][0]
                documents.append(Scored(segment, (), family))
            scores = self.scorer.score(documents, greedy=True)
            found += [(-float(nll), bool(likeliest == count), int(count)) for nll, count, likeliest in scores.tolist()]
        return found

    def _generate(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        most = int(settings.get("max_gen_toks", self.max_gen_toks))
        temperature = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
        decode, room = self.scorer.tokenizer.decode, self.scorer.shape.sequence_length - min(most, 32)
        prompts = [Prompt(np.array(self._kept(context, room), np.int32)) for context in contexts]
        sampling = Sampling(most, temperature, top_p=float(settings.get("top_p", 1.0)))
        ends = (lambda _, ids: cut(decode(ids), until) != decode(ids)) if until else None
        return [cut(decode(answer.ids), until) for answer in Generator(self.scorer).generate(prompts, sampling, ends=ends)]

    def _kept(self, context: str, room: int) -> list[int]:
        ids = self.scorer.tokenizer.encode(context)
        return ids[-max(1, room) :] or [self.scorer.tokens.eod_id]
