"""What came of one check: nothing that goes wrong in it keeps the next from being made."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "failed", "left out"]


class LeftOutError(Exception):
    """A check that cannot be made here; its text is the reason."""


@dataclass(frozen=True)
class Outcome:
    """`words`: what was found, or why not. `trace`: of what was raised, "" for a check that did not fail."""

    check: str
    state: State
    words: str
    trace: str = ""


def attempt(check: str, work: Callable[[], str]) -> Outcome:
    """`work` gives what it found; it raises LeftOutError where it cannot be made, and anything else where it fails."""
    try:
        return Outcome(check, "ok", work())
    except LeftOutError as reason:
        return Outcome(check, "left out", str(reason))
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return Outcome(check, "failed", f"{type(error).__name__}: {first}"[:200], traceback.format_exc())
