"""What weights come to: the share of a pack's positions that each source fills, and how much of it is pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_vlm.config.curriculum import Measure


@dataclass(frozen=True, slots=True)
class SourceShape:
    """What the documents of a source are like where a picture takes a certain number of tokens.

    `mean_positions` of a document, `visual_share` of its positions that are pictures' (0 to 1), and `positions` of one pass
    over all documents, None where that is not known.
    """

    mean_positions: float
    visual_share: float
    positions: int | None = None


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of filled positions: by source, which sum to 1, and of pictures; None: not known.

    `most_visual` is the share of pictures that can be had where another was asked for, else None. `known` is false where the
    weights were taken as they stand, since what they count needs datasets that were not read.
    """

    sources: dict[str, float]
    visual: float | None
    most_visual: float | None = None
    known: bool = True


def shares_of(weights: Mapping[str, float], measure: Measure, shapes: Mapping[str, SourceShape]) -> Shares:
    """The shares that the planner of packs aims at. Weights of 0 count for nothing; at least one must be above 0."""
    weighted = {name: weight for name, weight in weights.items() if weight > 0}
    unread = [name for name in weighted if name not in shapes]
    if unread and measure != "tokens":
        return Shares(_scaled(weighted), None, known=False)
    if measure == "visual_tokens":
        return _by_visual_tokens(weighted, shapes)
    if measure == "samples":
        weighted = {name: weight * shapes[name].mean_positions for name, weight in weighted.items()}
    shares = _scaled(weighted)
    return Shares(shares, None if unread else _visual(shares, shapes))


def _by_visual_tokens(weights: Mapping[str, float], shapes: Mapping[str, SourceShape]) -> Shares:
    filled = {n: weight / shapes[n].visual_share for n, weight in weights.items() if shapes[n].visual_share > 0}
    rest = {name: weight for name, weight in weights.items() if name not in filled}
    needed = sum(filled.values())
    if filled and (needed > 1 + 1e-9 or not rest):
        shares = _scaled(filled)
        visual = _visual(shares, shapes)
        return Shares(shares, visual, most_visual=visual if abs(needed - 1) > 1e-9 else None)
    left = max(0.0, 1 - needed)
    shares = {name: filled[name] if name in filled else left * _scaled(rest)[name] for name in weights}
    return Shares(shares, sum(weights[name] for name in filled))


def _visual(shares: Mapping[str, float], shapes: Mapping[str, SourceShape]) -> float:
    return sum(share * shapes[name].visual_share for name, share in shares.items())


def _scaled(weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
