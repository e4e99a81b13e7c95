"""The value nearest to a wrong one that would work, for messages that refuse the wrong one."""

from __future__ import annotations


def nearest_divisor(n: int, wanted: int) -> int:
    """The divisor of `n` nearest to `wanted`, the smaller of two."""
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: (abs(d - wanted), d))


def nearest_multiple(of: int, wanted: int) -> int:
    """The multiple of `of`, at least `of` itself, nearest to `wanted`."""
    return max(of, round(wanted / of) * of)
