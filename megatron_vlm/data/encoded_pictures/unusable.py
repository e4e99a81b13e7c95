"""A picture that nothing can be done with, and why."""

from __future__ import annotations

from typing import TypeAlias

from megatron_vlm.data.quarantine import Reason

Defect: TypeAlias = tuple[Reason, str]


class UnusablePicture(Exception):
    """The bytes are no picture that can be read. The caller, who knows the record, makes a `Rejection` of it.

    Attributes:
        reason: the kind of defect.
        detail: what was seen, in words.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}"

    @property
    def defect(self) -> Defect:
        """(reason, detail)."""
        return self.reason, self.detail


def undecodable(detail: str) -> UnusablePicture:
    """The common case, to be raised."""
    return UnusablePicture(Reason.UNDECODABLE_IMAGE, detail)
