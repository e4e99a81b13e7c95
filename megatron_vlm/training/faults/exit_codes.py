"""How a process ended by a fault says so. Numbers from sysexits.h, beside signals.EXIT_SAVED_ON_SIGNAL (75)."""

from __future__ import annotations

#: a step was bad and the run was to stop at it, or too many were (EX_DATAERR)
EXIT_BAD_STEPS = 65
#: data-parallel replicas of a parameter differ (EX_SOFTWARE)
EXIT_REPLICAS_DIFFER = 70
#: another rank stopped, died or failed, so this one could not go on (EX_OSERR)
EXIT_RANK_LOST = 71
