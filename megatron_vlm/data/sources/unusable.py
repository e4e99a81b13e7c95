"""Why one record cannot be used, on its way from where that is seen to the `Rejection`."""

from __future__ import annotations

from megatron_vlm.data.quarantine import Reason


class Unusable(Exception):
    """A record that cannot be used. `reason` is the kind of defect, the message what was seen, `absent` where pictures
    would lie that are not there, as of `Record`."""

    def __init__(self, reason: Reason, detail: str, absent: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.reason, self.absent = reason, absent
