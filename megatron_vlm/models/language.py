"""The language model: megatron-core's GPTModel, with a z-loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch import Tensor

from megatron_vlm.models.context_row import ContextRow
from megatron_vlm.models.fused_embedding import FusedEmbedding
from megatron_vlm.models.scored_row import ScoredRow


def vocab_parallel_logsumexp(logits: Tensor) -> Tensor:
    """logsumexp over a vocabulary that tensor-parallel ranks share: `[s, b, v / tp]` -> `[s, b]` fp32, differentiable."""
    logits = logits.float()
    highest = logits.detach().max(dim=-1).values
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size() > 1:
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    total = reduce_from_tensor_model_parallel_region((logits - highest.unsqueeze(-1)).exp().sum(dim=-1))
    return total.log() + highest


def label_likelihoods(logits: Tensor, labels: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """What a vocabulary that tensor-parallel ranks share makes of labels.

    Args:
        logits: `[b, s, v / tp]`, this rank's part.
        labels: int64 `[b, s]`.
        vocab_size: ids from here on are padding, which training gives a share of the probability and this does not.

    Returns:
        fp32 `[b, s]` each, on all ranks: negative log-likelihood in nats, and 1 where no other token is likelier, else 0.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    first = group.rank() * logits.size(-1)
    first_padding = min(max(vocab_size - first, 0), logits.size(-1))
    own = (labels >= first) & (labels < first + first_padding)
    at = torch.where(own, labels - first, 0).unsqueeze(-1)
    logits = logits.float()
    lowest = torch.finfo(logits.dtype).min
    target = torch.where(own, logits.gather(-1, at).squeeze(-1), lowest)
    if first_padding:
        logits = logits[..., :first_padding]
        best = logits.max(dim=-1).values
    else:  # a rank that holds padding alone
        logits = logits[..., :1].new_full(logits[..., :1].shape, float("-inf"))
        best = torch.full_like(target, lowest)
    both = torch.stack([target, best])
    if group.size() > 1:
        dist.all_reduce(both, op=dist.ReduceOp.MAX, group=group)
    total = (logits - both[1].unsqueeze(-1)).exp_().sum(dim=-1)
    if group.size() > 1:
        dist.all_reduce(total, group=group)
    return total.log() + both[1] - both[0], (both[0] >= both[1]).float()


class LanguageModel(GPTModel):
    """GPTModel whose loss may hold a z-loss, weight * logsumexp(logits)^2 (PaLM, arXiv 2204.02311, section 5)."""

    def __init__(self, *args: Any, z_loss: float = 0.0, embedding_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.z_loss, self.embedding_scale = z_loss, embedding_scale
        if self.pre_process:
            self.embedding.word_embeddings = FusedEmbedding.of(self.embedding.word_embeddings)
        #: weighted z-loss of each token of the last row, `[b, s]`, so that a report can tell it from the cross-entropy
        self.last_z_loss: Tensor | None = None

    def embed(self, tokens: Tensor, rows: Tensor | None, row_index: Tensor) -> Tensor:
        """The decoder's input `[s, b, h]` (`s / tp` under sequence parallelism): words, and picture rows at their places.

        What megatron-core's LanguageModelEmbedding does after the lookup, dropout that is, is done here as there.
        """
        parallel = self.config.sequence_parallel
        scale = self.embedding_scale
        if scale != 1.0 and rows is not None:
            rows = rows / scale  # words alone are scaled; ranks of sequence parallelism hold a mixture of both
        x = self.embedding.word_embeddings(tokens, rows, row_index, parallel)
        if scale != 1.0:
            x = x * scale
        if not parallel:
            return self.embedding.embedding_dropout(x)
        with get_cuda_rng_tracker().fork():  # ranks hold different positions, and get different masks
            return self.embedding.embedding_dropout(x)

    def _preprocess(self, *args: Any, packed_seq_params: Any = None, **kwargs: Any) -> Any:
        made = super()._preprocess(*args, packed_seq_params=packed_seq_params, **kwargs)
        if isinstance(packed_seq_params, ScoredRow | ContextRow) and made[1] is not None:
            made = (made[0], packed_seq_params.rotary(made[1]), *made[2:])
        return made

    def _postprocess(self, hidden_states: Tensor, *args: Any, packed_seq_params: Any = None, **kwargs: Any) -> Any:
        if isinstance(packed_seq_params, ScoredRow) and self.post_process:
            hidden_states = packed_seq_params.hidden(hidden_states, self.config.sequence_parallel)
        return super()._postprocess(hidden_states, *args, packed_seq_params=packed_seq_params, **kwargs)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """Labels `[b, s]` and this rank's logits `[s, b, v / tp]` -> loss of each token `[b, s]`, fp32."""
        # the cross-entropy overwrites the logits, so what the z-loss needs of them is taken first
        z = vocab_parallel_logsumexp(logits) if self.z_loss and self.training else None
        loss = super().compute_language_model_loss(labels, logits.clone() if z is not None else logits)
        if z is None:
            self.last_z_loss = None
            return loss
        weighted = self.z_loss * z.square().transpose(0, 1)
        self.last_z_loss = weighted.detach()
        return loss + weighted


def padded_vocab_size(vocab_size: int, multiple: int) -> int:
    """The next multiple: independent of the tensor-parallel size, so that every layout has the same model."""
    return -(-vocab_size // multiple) * multiple


def packed_row(cu_seqlens: Tensor, max_seqlen: int) -> Any:
    """PackedSeqParams of one row of documents; `cu_seqlens` int32 `[documents + 1]`."""
    from megatron.core.packed_seq_params import PackedSeqParams

    cu_seqlens = cu_seqlens.to(torch.int32)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
    )
