"""How many updates the parameters have seen, which is less than the steps where some were left out or taken back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


class UpdateCount:
    """Updates made in all, and how many the moments of each optimiser group have seen; Adam's bias correction counts by
    them. The same on every rank.

    Attributes:
        made: updates in all.
        ages: label of each group that any rank trains -> updates since its moments began.
    """

    def __init__(self, made: int = 0, ages: Mapping[str, int] | None = None) -> None:
        self.made = made
        self.ages: dict[str, int] = dict(ages or {})

    def age(self, label: str) -> int:
        """Updates that the moments of a group have seen; 0 for one that begins."""
        return self.ages.get(label, 0)

    def count(self, left_out: Collection[str] = ()) -> None:
        """One more update, of all modules but these."""
        self.made += 1
        for label in self.ages:
            self.ages[label] += label.partition(":")[0] not in left_out

    def state(self) -> dict[str, Any]:
        return {"made": self.made, "ages": dict(self.ages)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave, for groups of the same labels. One of an earlier version, which has no ages, means
        moments as old as the run."""
        self.made = int(state["made"])
        ages = state.get("ages")
        if ages is None:
            ages = dict.fromkeys(self.ages, self.made)
        self.ages = {label: int(age) for label, age in ages.items()}
