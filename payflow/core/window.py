"""Sliding window over the last N calls: how many failed, how many were slow, and at which rates.

A ring of one byte a call plus running counters: recording and reading cost the same for every size. A rate is -1 while
fewer than `minimum` calls are known, because a rate of two calls is noise.

Invariants: 0 <= slow_failed <= min(failed, slow); max(failed, slow) <= total <= size.
"""

from __future__ import annotations

from typing import Final

NO_RATE: Final = -1.0

_FAILED: Final = 1
_SLOW: Final = 2


class CountWindow:
    """The last `size` calls; the oldest makes room for the newest. The counters are for reading."""

    __slots__ = ("_next", "_ring", "failed", "minimum", "size", "slow", "slow_failed", "total")

    def __init__(self, size: int, minimum: int) -> None:
        assert size >= 1
        assert minimum >= 1
        self.size: Final = size
        self.minimum: Final = min(minimum, size)
        self.total = 0
        self.failed = 0
        self.slow = 0
        self.slow_failed = 0
        self._ring: Final = bytearray(size)
        self._next = 0

    def record(self, *, failed: bool, slow: bool) -> None:
        """Count one ended call and forget the one it replaces."""
        place = self._next
        self._next = place + 1 if place + 1 < self.size else 0
        if self.total < self.size:
            self.total += 1
        elif self._ring[place]:
            self._add(self._ring[place], -1)
            self._ring[place] = 0
        if failed or slow:
            flags = failed * _FAILED | slow * _SLOW
            self._ring[place] = flags
            self._add(flags, 1)

    @property
    def failure_rate(self) -> float:
        """Percent of the calls that failed, or -1 below the minimum."""
        return self.failed * 100.0 / self.total if self.total >= self.minimum else NO_RATE

    @property
    def slow_call_rate(self) -> float:
        """Percent of the calls that were slow, failed or not; or -1 below the minimum."""
        return self.slow * 100.0 / self.total if self.total >= self.minimum else NO_RATE

    def _add(self, flags: int, change: int) -> None:
        if flags & _FAILED:
            self.failed += change
        if flags & _SLOW:
            self.slow += change
        if flags == _FAILED | _SLOW:
            self.slow_failed += change
        assert 0 <= self.slow_failed <= min(self.failed, self.slow)
        assert max(self.failed, self.slow) <= self.total
