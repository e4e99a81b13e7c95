"""What a stage owes to each source: weights measured in tokens, visual tokens or samples, and the running account."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from megatron_vlm.config.curriculum import StageConfig
from megatron_vlm.data.documents import DocumentSource
from megatron_vlm.errors import ConfigError


@dataclass
class Account:
    """What a source has given since the stage began. `tokens` are positions, `visual` those of them that are pictures'."""

    tokens: int = 0
    visual: int = 0
    documents: int = 0

    def to_map(self) -> dict[str, int]:
        return asdict(self)


class Mixture:
    """Chooses the source that is furthest behind its share, and keeps others from filling its holes without end.

    At any prefix of two sources the realised share is within a pack of the planned one (counted in samples: within the
    documents that a pack holds on average, or one). With n sources it nearly always is, and n - 1 packs are the bound: each
    may wait to open a pack with a document that needs a whole one. Where nothing that fits may be taken, padding is left:
    were every hole filled, a source of short documents would take whatever share the others' holes happen to have.

    Raises:
        ConfigError: a share of visual tokens that the sources' captions make unreachable.
    """

    def __init__(self, stage: StageConfig, sources: dict[str, DocumentSource]) -> None:
        self.stage = stage
        self.sources = {name: sources[name] for name, weight in stage.sources.items() if weight > 0}
        self.accounts = {name: Account() for name in self.sources}
        self._visual = {
            name: stage.sources[name]
            for name, source in self.sources.items()
            if stage.measure == "visual_tokens" and source.has_pictures
        }
        rest = [name for name in self.sources if name not in self._visual]
        total = sum(stage.sources[name] for name in rest)
        self._weights = {name: stage.sources[name] / total for name in rest}
        self._check_reachable(bool(rest))

    def _check_reachable(self, has_rest: bool) -> None:
        needed = sum(share / self.sources[name].visual_share for name, share in self._visual.items())
        if self._visual and (needed > 1 + 1e-9 or (not has_rest and needed < 1 - 1e-9)):
            most = sum(self._visual.values()) / needed
            how = "at most" if needed > 1 else "exactly, with no other source to fill the rest,"
            raise ConfigError(
                f"curriculum stage {self.stage.name!r}: a visual-token share of {sum(self._visual.values()):g} cannot be "
                f"reached, since only part of these documents is pictures; {how} {most:.3f} can"
            )

    @property
    def planned_visual_share(self) -> float:
        """The share of filled positions that will be picture tokens."""
        if self.stage.measure == "visual_tokens":
            return sum(self._visual.values())
        if self.stage.measure == "tokens":
            return sum(weight * self.sources[name].visual_share for name, weight in self._weights.items())
        tokens = {name: weight * self.sources[name].mean_positions for name, weight in self._weights.items()}
        visual = sum(count * self.sources[name].visual_share for name, count in tokens.items())
        return visual / sum(tokens.values())

    @property
    def achieved_visual_share(self) -> float:
        tokens = sum(account.tokens for account in self.accounts.values())
        return sum(account.visual for account in self.accounts.values()) / tokens if tokens else 0.0

    def candidates(self, space: int, capacity: int) -> list[str]:
        """Sources that may fill `space` positions of a pack of `capacity`: the one furthest behind first, then those
        that can without more than a pack being ahead in all. Ties go by the order of the stage's weights.
        """
        behind = self._behind()
        first, *others = sorted(behind, key=lambda name: -behind[name])
        more, most = float(space), float(capacity)
        if self.stage.measure == "samples":
            mean = sum(weight * self.sources[name].mean_positions for name, weight in self._weights.items())
            more, most = 1.0, max(1.0, capacity / mean)
        ahead = -sum(value for value in behind.values() if value < 0)
        return [first, *(name for name in others if ahead + more - max(0.0, behind[name]) <= most)]

    def _behind(self) -> dict[str, float]:
        """By how much each source is behind its share, negative where it is ahead: positions, or documents for samples."""
        accounts, stage = self.accounts, self.stage
        tokens = sum(account.tokens for account in accounts.values())
        behind: dict[str, float] = {}
        if stage.measure == "samples":
            documents = sum(account.documents for account in accounts.values())
            for name, weight in self._weights.items():
                behind[name] = weight * documents - accounts[name].documents
        else:
            for name, share in self._visual.items():
                behind[name] = (share * tokens - accounts[name].visual) / self.sources[name].visual_share
            others = tokens - sum(accounts[name].tokens for name in self._visual)
            # what the picture sources are ahead by, the rest is behind by
            owed = -sum(behind.values())
            for name, weight in self._weights.items():
                behind[name] = weight * (others + owed) - accounts[name].tokens
        return behind

    def record(self, name: str, tokens: int, visual: int, begins: bool) -> None:
        account = self.accounts[name]
        account.tokens += tokens
        account.visual += visual
        account.documents += begins
