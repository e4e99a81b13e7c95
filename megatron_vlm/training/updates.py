"""How many updates the parameters have seen, which is less than the steps where some were left out or taken back."""

from __future__ import annotations

from typing import Any


class UpdateCount:
    """Updates made, and how many had been made when each stage began; Adam's bias correction counts by them."""

    def __init__(self, made: int = 0) -> None:
        self.made = made
        self._at_stage: dict[int, int] = {}

    def enter_stage(self, stage: int) -> None:
        """A stage begins here. One that was entered before keeps its count."""
        for entered in range(stage + 1):  # a stage that was passed over began where this one does
            self._at_stage.setdefault(entered, self.made)

    def before_stage(self, stage: int) -> int:
        """Updates made before `stage` began; all so far for one that has not begun."""
        return self._at_stage.get(stage, self.made)

    def state(self) -> dict[str, Any]:
        return {"made": self.made, "at_stage": {str(stage): made for stage, made in self._at_stage.items()}}

    def load(self, state: dict[str, Any]) -> None:
        self.made = int(state["made"])
        self._at_stage = {int(stage): int(made) for stage, made in state["at_stage"].items()}
