"""What readers raise inside, and never let out: why one record cannot be used."""

from __future__ import annotations

from megatron_vlm.data.quarantine import Reason


class Defect(Exception):
    """A record's fault on its way to becoming a `Rejection`. `str()` of it is what was seen, in words."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
