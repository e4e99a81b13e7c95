"""Which token comes next: greedy, or drawn at a temperature from the likeliest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_vlm.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How to continue.

    Attributes:
        max_new_tokens: after which an answer ends at the latest.
        temperature: logits are divided by it; 0 is greedy.
        top_k: only so many of the likeliest tokens may come; 0 for no limit.
        top_p: only the likeliest tokens that together reach this probability may come (Holtzman et al. 2020); 1 for all.
        seed: of the draws; a prompt's draws do not depend on what else is in its batch.

    Raises:
        ConfigError: a value out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, fits, wanted in (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, self.temperature >= 0, "0 (greedy) or above"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (no limit) or above"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not fits:
                raise ConfigError(f"{name} is {value:g}, but must be {wanted}")


def next_tokens(logits: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> Tensor:
    """The next token of each row.

    Args:
        logits: fp32 `[b, v]`; ids that must not come are -inf.
        generators: one a row, on the CPU; unused where greedy.

    Returns:
        int64 `[b]`. Of equal logits the first is the likeliest.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.double().cpu() / sampling.temperature
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = float("-inf")
    probabilities = ordered.softmax(dim=-1)
    if sampling.top_p < 1:
        # a token may come if those before it do not reach the share yet, so that there is always one
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = torch.where(before < sampling.top_p, probabilities, 0.0)
    drawn = [
        torch.multinomial(row, 1, generator=generator) for row, generator in zip(probabilities, generators, strict=True)
    ]
    return ids.gather(-1, torch.stack(drawn)).squeeze(-1)
