"""Answers token by token, with the keys and values of what came before kept in megatron-core's inference context.

A batch is a set of prompts of like length. All positions up to the end of the shortest are read in one pass; from there on
one position at a time, where the longer prompts still give their own tokens. Pictures may stand anywhere: their rows take
the places of their placeholders, in the first pass and after it.

Under tensor and pipeline parallelism hidden states pass from stage to stage, and the last one says which token is next;
data- and context-parallel ranks share the batches. Sequence parallelism and interleaved stages are for training alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.inference.contexts import StaticInferenceContext
from torch import Tensor

from megatron_vlm.data.picture_input import PictureInput
from megatron_vlm.errors import DataError
from megatron_vlm.evaluation.sampling import Sampling, next_tokens
from megatron_vlm.evaluation.scorer import Scorer
from megatron_vlm.training.engine import unwrap
from megatron_vlm.training.scoring import rows_of


@dataclass(frozen=True)
class Prompt:
    """What an answer follows: token ids, int32[n], placeholders expanded; and its pictures, uint8 `[size, size, 3]` each
    (none on ranks without the encoder)."""

    ids: npt.NDArray[np.int32]
    pictures: tuple[npt.NDArray[np.uint8], ...] = ()


@dataclass(frozen=True)
class Answer:
    """Token ids after the prompt, without the end of document; `ended` by it, or by the most tokens."""

    ids: tuple[int, ...]
    ended: bool


#: called on every rank with each new token: number of the prompt, token id
Heard = Callable[[int, int], None]


class Generator:
    """Generates with the model of a scorer.

    Args:
        most_together: prompts of a batch at most, 1 at least.

    Raises:
        DataError: a layout that cannot generate.
    """

    def __init__(self, scorer: Scorer, most_together: int = 32) -> None:
        parallel = scorer.config.parallel
        if parallel.sequence_parallel or len(scorer.engine.forward_chunks) > 1:
            raise DataError(
                "generation needs a layout without sequence_parallel and with virtual_pipeline_model_parallel_size 1"
            )
        self.scorer, self.most_together = scorer, most_together
        self._model = unwrap(scorer.engine.forward_chunks[0])
        self._hidden_dtype = next(self._model.parameters()).dtype

    # -- prompts ---------------------------------------------------------------------------------------------------

    def prompt(self, text: str, pictures: Sequence[npt.NDArray[np.uint8]] = (), count: int | None = None) -> Prompt:
        """A prompt of pictures and then text, as captions are trained; `count` of pictures where this rank has none."""
        tokens = self.scorer.tokens
        rows = rows_of(self.scorer.shape, pictures, len(pictures) if count is None else count)
        ids = [tokens.image_token_id] * rows + self.scorer.tokenizer.encode(text)
        return Prompt(np.array(ids or [tokens.eod_id], np.int32), tuple(pictures))

    # -- answers ---------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        heard: Heard | None = None,
        ends: Callable[[int, Sequence[int]], bool] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> list[Answer]:
        """An answer to each prompt, the same on every rank.

        Args:
            prompts: the same on every rank, but for pictures.
            heard: called with each token of the prompts that this rank answers, as it comes.
            ends: whether an answer (prompt's number, its ids so far) is complete, asked after each token; it must say the
                same on every rank.
            progress: called with the number of prompts that were answered since the last call, by all ranks together.

        Raises:
            DataError: a prompt that leaves no room for one token in the model's rows.
        """
        capacity = self.scorer.shape.sequence_length
        for number, prompt in enumerate(prompts):
            if len(prompt.ids) >= capacity:
                raise DataError(
                    f"prompt {number} has {len(prompt.ids)} tokens, and the model's rows {capacity}: shorten it, or raise "
                    f"data.sequence_length as far as the model was trained for"
                )
        by_length = sorted(range(len(prompts)), key=lambda number: len(prompts[number].ids))
        batches = [by_length[at : at + self.most_together] for at in range(0, len(by_length), self.most_together)]
        topology = self.scorer.topology
        mine: dict[int, Answer] = {}
        self._model.eval()
        with torch.no_grad(), self.scorer.engine.whole_parameters():
            for at, batch in enumerate(batches):
                if at % topology.replica_size == topology.replica_rank:
                    answers = self._batch([prompts[n] for n in batch], batch, sampling, heard, ends)
                    mine |= dict(zip(batch, answers, strict=True))
                if progress is not None:
                    progress(len(batch))
        self._model.train()
        shared: list[dict[int, Answer]] = [{} for _ in range(topology.replica_size)]
        dist.all_gather_object(shared, mine, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        found = {number: answer for part in shared for number, answer in part.items()}
        return [found[number] for number in range(len(prompts))]

    def _batch(
        self,
        prompts: Sequence[Prompt],
        numbers: Sequence[int],
        sampling: Sampling,
        heard: Heard | None,
        ends: Callable[[int, Sequence[int]], bool] | None,
    ) -> list[Answer]:
        tokens, device = self.scorer.tokens, self.scorer.topology.device
        lengths = [len(prompt.ids) for prompt in prompts]
        most = [min(sampling.max_new_tokens, self.scorer.shape.sequence_length - length) for length in lengths]
        stop = max(length + count for length, count in zip(lengths, most, strict=True))
        ids = torch.full((len(prompts), stop), tokens.pad_id, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : lengths[row]] = torch.from_numpy(prompt.ids.astype(np.int64))
        ids = ids.to(device)
        row_index = _rows(ids, tokens.image_token_id)
        rows = self._encode(prompts)
        context = StaticInferenceContext(len(prompts), stop)
        # draws depend on the prompt's number alone
        generators = [torch.Generator().manual_seed(sampling.seed * 1_000_003 + number) for number in numbers]
        answers: list[list[int]] = [[] for _ in prompts]
        ended, done = [False] * len(prompts), [count == 0 for count in most]
        begin, end = 0, min(lengths)
        while end < stop and not all(done):
            logits = self._forward(ids[:, begin:end], row_index[:, begin:end], rows, begin, context)
            waiting = [row for row in range(len(prompts)) if end >= lengths[row] and not done[row]]
            following = self._choose(logits, waiting, sampling, [generators[row] for row in waiting])
            context.sequence_len_offset = end
            context.enable_decode_mode()
            for row, token in zip(waiting, following, strict=True):
                if token == tokens.eod_id:
                    ended[row] = done[row] = True
                    continue
                ids[row, end] = token
                answers[row].append(token)
                if heard is not None:
                    heard(numbers[row], token)
                over = len(answers[row]) >= most[row] or (ends is not None and ends(numbers[row], answers[row]))
                done[row] = over
            begin, end = end, end + 1
        return [Answer(tuple(answer), over) for answer, over in zip(answers, ended, strict=True)]

    def _encode(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """Rows of all pictures of the prompts, in order, on the first stage."""
        if not self.scorer.topology.on_first_stage:
            return None
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        if not pictures:
            return None
        shape, sizes = self.scorer.shape, None
        if shape.picture.native:
            sizes = tuple((picture.shape[0], picture.shape[1]) for picture in pictures)
        flat = np.stack(pictures) if sizes is None else np.concatenate([picture.reshape(-1) for picture in pictures])
        pixels = torch.from_numpy(flat).to(self.scorer.topology.device)
        shown = PictureInput(len(pictures), rows_of(shape, pictures, len(pictures)), pixels, sizes)
        return self._model.encode_pictures(shown).to(self._hidden_dtype)

    def _forward(
        self, ids: Tensor, row_index: Tensor, rows: Tensor | None, begin: int, context: StaticInferenceContext
    ) -> Tensor | None:
        """Logits of the last position, `[b, v]` fp32, on the last stage."""
        topology, language = self.scorer.topology, self._model.language_model
        group = parallel_state.get_pipeline_model_parallel_group()
        batch, length = ids.shape
        decoder_input = None
        if topology.on_first_stage:
            decoder_input = language.embed(ids.contiguous(), rows, row_index.contiguous())
        else:
            hidden = self.scorer.config.model.language.hidden_size
            received = torch.empty(length, batch, hidden, dtype=self._hidden_dtype, device=topology.device)
            dist.recv(received, src=dist.get_process_group_ranks(group)[topology.pipeline_rank - 1])
            language.set_input_tensor(received)
        positions = torch.arange(begin, begin + length, device=topology.device).expand(batch, length)
        output: Tensor = language(
            input_ids=ids,
            position_ids=positions,
            attention_mask=None,
            decoder_input=decoder_input,
            inference_context=context,
            runtime_gather_output=True,
        )
        if topology.on_last_stage:
            return output[:, -1].float()
        dist.send(output.contiguous(), dst=dist.get_process_group_ranks(group)[topology.pipeline_rank + 1])
        return None

    def _choose(
        self, logits: Tensor | None, waiting: list[int], sampling: Sampling, generators: list[torch.Generator]
    ) -> list[int]:
        """The next token of each row that waits for one, chosen on the last stage and told to all."""
        topology, tokens = self.scorer.topology, self.scorer.tokens
        chosen = torch.zeros(len(waiting), dtype=torch.int64, device=topology.device)
        if logits is not None and waiting:
            logits = logits[waiting]
            logits[:, tokens.vocab_size :] = float("-inf")
            # a placeholder would want a picture's row, and padding means nothing
            logits[:, [tokens.image_token_id, tokens.pad_id]] = float("-inf")
            chosen = next_tokens(logits, sampling, generators).to(topology.device)
        if topology.pipeline_size > 1:
            group = parallel_state.get_pipeline_model_parallel_group()
            dist.broadcast(chosen, src=dist.get_process_group_ranks(group)[-1], group=group)
        return chosen.tolist()


def _rows(ids: Tensor, image_token_id: int) -> Tensor:
    """int32, as `ids`: number of the picture row that stands at each position over the whole batch, -1 for words."""
    placeholders = ids == image_token_id
    return torch.where(placeholders.view(-1), placeholders.view(-1).cumsum(0) - 1, -1).view(ids.shape).to(torch.int32)


class Spoken:
    """Text of tokens as they come: held back while its end is half a character, or may become one of `stop`."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._ids: list[int] = []
        self._said = 0

    def add(self, token: int) -> str:
        """What the token adds that can be said already."""
        self._ids.append(token)
        text = cut(self._decode(self._ids), self._stop)
        # what is held may be no longer than the text, or the slice below would count from its end
        longest = min(max((len(mark) for mark in self._stop), default=1) - 1, len(text))
        held = next((n for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in self._stop)), 0)
        return "" if text.endswith("\ufffd") else self._say(text[: len(text) - held])

    def rest(self) -> str:
        """What is left at the end."""
        return self._say(cut(self._decode(self._ids), self._stop))

    def _say(self, text: str) -> str:
        new, self._said = text[self._said :], max(self._said, len(text))
        return new


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first place where one of `stop` begins."""
    places = [place for mark in stop if (place := text.find(mark)) >= 0]
    return text[: min(places)] if places else text
