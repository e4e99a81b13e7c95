"""Why one record cannot be used, on its way from where that is seen to the `Rejection`."""

from __future__ import annotations

from megatron_vlm.data.quarantine import Reason


class Unusable(Exception):
    """A record that cannot be used. `reason` is the kind of defect, the message what was seen."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
